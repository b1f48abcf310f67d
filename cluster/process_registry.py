"""The registry of a stack folder's services, `stack.json`, and their launch.

Owns ports, files and launches of processes (`processes.py`). Does not depend on which services are launched.
"""

import json
import os
import random
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from cluster.json_records import read_record
from cluster.processes import MARK, Service, leader, stop

# Below the ports that Linux and macOS assign to outgoing connections, above those that Ray Client uses.
PORTS = range(24_000, 32_000)


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """How to launch a service and how to see that it is up."""

    command: list[str]
    address: str = ""
    probes: tuple[str, ...] = ()
    process_env: dict[str, str] = field(default_factory=dict)  # added to the environment of the process
    client_env: dict[str, str] = field(default_factory=dict)


MakeSpec = Callable[[tuple[int, ...], Path], ServiceSpec]  # from the service's ports and its scratch folder


def free_ports(count: int) -> tuple[int, ...]:
    """Distinct ports on which no process listens now, on any interface; another process may take them at any time."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(ports) == count:
            return tuple(ports)
        if is_free(port):
            ports.append(port)
    raise RuntimeError(f"only {len(ports)} of {count} ports are free between {PORTS.start} and {PORTS.stop - 1}")


def is_free(port: int) -> bool:
    """Whether no process listens on the port; connections that linger after their server ended do not count."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by rename, readable by its owner only: readers see the old text or the new, never half."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _in_words(settings: dict[str, str | int]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


@dataclass(frozen=True)
class _Services:
    """The file of a stack's services."""

    services: list[Service]


class ProcessRegistry:
    """The services of one stack folder.

    Contract: every change is written to `stack.json` before the method returns, so a later command, in another process,
    finds the services. The file is read once, by the constructor: commands that change it hold the folder's lock
    (`stack.py`) for as long as they use the object. A kill between launch and record leaves a running process without
    record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "stack.json"
        self.launched: list[str] = []  # by this object, in order
        self.services: dict[str, Service] = {}
        if self.path.is_file():
            fix = f"stop the processes that have {MARK} in their environment, then delete it"
            self.services = {service.name: service for service in read_record(self.path, _Services, fix=fix).services}

    def put(self, service: Service) -> None:
        """Record a service under its name."""
        self.services[service.name] = service
        self._save()

    def recorded_setting(self, name: str, key: str) -> str | int | None:
        """A setting of a recorded service; None if no such service is recorded."""
        return self.services[name].settings[key] if name in self.services else None

    def check_settings(self, name: str, settings: dict[str, str | int]) -> None:
        """ValueError if the service is recorded with other settings."""
        if name in self.services and self.services[name].settings != settings:
            raise ValueError(
                f"{name}: requested with {_in_words(settings)}, but the stack in {self.folder} has it with "
                f"{_in_words(self.services[name].settings)}; stop that first: antiphon cluster down"
            )

    def stop(self, name: str) -> bool:
        """Stop a recorded service and remove its record; False if none of its processes was running."""
        ran = stop(self.services[name])
        del self.services[name]
        self._save()
        return ran

    def _save(self) -> None:
        records = [asdict(service) for service in self.services.values()]
        write_atomically(self.path, json.dumps({"services": records}, indent=1))

    def ensure(self, name: str, make_spec: MakeSpec, *, num_ports: int, settings: dict[str, str | int]) -> Service:
        """Return the running service of this name; launch it if it does not run, without waiting until it is up.

        A service that died is launched on its old ports if they are free, so that its address stays valid; orphans that
        it left are stopped first. ValueError if it is recorded with other settings.
        """
        ports = free_ports(num_ports)
        old = self.services.get(name)
        if old is not None:
            self.check_settings(name, settings)
            if leader(old) is not None:
                return old
            stop(old)
            ports = tuple(port if is_free(port) else new for port, new in zip(old.ports, ports, strict=True))
        return self._launch(name, make_spec, ports, settings)

    def _launch(
        self, name: str, make_spec: MakeSpec, ports: tuple[int, ...], settings: dict[str, str | int]
    ) -> Service:
        # A short path, so not under the stack folder: the path of a UNIX socket holds about 100 bytes.
        scratch = Path(tempfile.mkdtemp(prefix="antiphon-", dir="/tmp"))
        spec = make_spec(ports, scratch)
        mark = uuid.uuid4().hex
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{name}.log"
        process = _start_process(spec, mark, log)
        service = Service(
            name=name,
            settings=settings,
            pid=process.pid,
            started=psutil.Process(process.pid).create_time(),
            mark=mark,
            address=spec.address,
            probes=spec.probes,
            ports=ports,
            client_env=spec.client_env,
            log=str(log),
            scratch=str(scratch),
        )
        self.put(service)
        self.launched.append(name)
        return service


def _start_process(spec: ServiceSpec, mark: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **spec.process_env, MARK: mark}
    environment.pop("RAY_ADDRESS", None)  # it may name another cluster of the user
    with log.open("ab") as output:
        return subprocess.Popen(
            spec.command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal does not reach it
        )
