"""The record of a stack folder, `stack.json`, and the launching of what is written there.

Knows processes (`services.py`), ports and files; does not know what is launched.
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

from cluster.processes import MARK, Service, end, leader

# Below the ports that Linux and macOS give to outgoing connections, above those that Ray Client takes for itself.
PORTS = range(24_000, 32_000)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run and how to tell that it serves; a function of the ports and the scratch folder, chosen first."""

    command: list[str]
    address: str = ""
    probes: tuple[str, ...] = ()
    process_env: dict[str, str] = field(default_factory=dict)  # added to the environment of the process
    client_env: dict[str, str] = field(default_factory=dict)


Make = Callable[[tuple[int, ...], Path], Program]


def free_ports(count: int) -> tuple[int, ...]:
    """Different ports that nobody listens on at this moment, on any interface."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(ports) == count:
            return tuple(ports)
        if is_free(port):
            ports.append(port)
    raise RuntimeError(f"only {len(ports)} of {count} ports are free between {PORTS.start} and {PORTS.stop - 1}")


def is_free(port: int) -> bool:
    """Whether nobody listens on the port; connections that linger after their server ended do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only: a reader sees the old text or the new, never half."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _words(settings: dict[str, str | int]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


class Book:
    """The services of one stack folder; every change is on disk before anything else happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "stack.json"
        self.launched: list[str] = []  # by this object
        self.services: dict[str, Service] = {}
        if self.path.is_file():
            for record in json.loads(self.path.read_text())["services"]:
                record |= {"probes": tuple(record["probes"]), "ports": tuple(record["ports"])}
                self.services[record["name"]] = Service(**record)

    def put(self, service: Service) -> None:
        """Record a service under its name."""
        self.services[service.name] = service
        self._save()

    def setting(self, name: str, key: str) -> str | int | None:
        """What a recorded service was asked to be; None where it is not recorded."""
        return self.services[name].settings[key] if name in self.services else None

    def check(self, name: str, settings: dict[str, str | int]) -> None:
        """ValueError if the service is recorded with other settings."""
        if name in self.services and self.services[name].settings != settings:
            raise ValueError(
                f"{name}: wanted with {_words(settings)}, but the stack in {self.folder} has it with "
                f"{_words(self.services[name].settings)}; stop that first: antiphon cluster down"
            )

    def stop(self, name: str) -> bool:
        """End a recorded service and forget it; False if nothing of it ran."""
        ran = end(self.services[name])
        del self.services[name]
        self._save()
        return ran

    def _save(self) -> None:
        records = [asdict(service) for service in self.services.values()]
        write_whole(self.path, json.dumps({"services": records}, indent=1))

    def ensure(self, name: str, make: Make, *, num_ports: int, settings: dict[str, str | int]) -> Service:
        """The running service of this name, launched if it does not run.

        One that died comes back on its old ports if they are free, so that its address stays good. ValueError if it
        is recorded with other settings.
        """
        ports = free_ports(num_ports)
        old = self.services.get(name)
        if old is not None:
            self.check(name, settings)
            if leader(old) is not None:
                return old
            end(old)
            ports = tuple(port if is_free(port) else new for port, new in zip(old.ports, ports, strict=True))
        return self._launch(name, make, ports, settings)

    def _launch(self, name: str, make: Make, ports: tuple[int, ...], settings: dict[str, str | int]) -> Service:
        # Short, and not under the stack folder: the path of a UNIX socket holds about 100 bytes.
        scratch = Path(tempfile.mkdtemp(prefix="antiphon-", dir="/tmp"))
        program = make(ports, scratch)
        mark = uuid.uuid4().hex
        environment = {**os.environ, **program.process_env, MARK: mark}
        environment.pop("RAY_ADDRESS", None)  # the user's other cluster is not this stack's business
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                program.command,
                cwd=logs,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        service = Service(
            name=name,
            settings=settings,
            pid=process.pid,
            started=psutil.Process(process.pid).create_time(),
            mark=mark,
            address=program.address,
            probes=program.probes,
            ports=ports,
            client_env=program.client_env,
            log=str(log),
            scratch=str(scratch),
        )
        self.put(service)
        self.launched.append(name)
        return service
