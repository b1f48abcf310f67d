"""The local stack: a Ray head, an MLflow server and an S3 server on free ports of this machine.

Owns the options that each of them is started with and the environment that a client needs. All are separate processes:
neither Ray nor MLflow is imported. Measured facts behind the options: reference/ray.md 0 and 5, reference/storage.md 2
and 3.

Contract: the services outlive the command that starts them; their records and data lie in the stack's folder. `up` and
`down` hold the folder's lock, so that two commands run one after the other, and are safe to repeat after a kill;
`status` takes no lock.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from cluster import ceph
from cluster.process_registry import ProcessRegistry, ServiceSpec
from cluster.processes import Service, State, state, wait_until_up

DEFAULT_FOLDER = Path("~/.antiphon/stack")
START_S = 180.0  # a Ray head takes 12 s on two idle cores and 38 s on loaded ones; MLflow about as long

# botocore's and Arrow's newer default checksums are refused by older S3 servers (reference/storage.md 1.3).
CHECKSUMS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The recorded services of a folder, and the names of those that this call of `up` launched."""

    folder: Path
    services: tuple[Service, ...]
    launched: tuple[str, ...]

    @property
    def ray_address(self) -> str:
        """HOST:PORT for `antiphon run --address` and `ray.init`."""
        return next(service.address for service in self.services if service.name == "ray")


def up(
    folder: str | Path = DEFAULT_FOLDER, *, cpus: int | None = None, mlflow: bool = True, s3: str | None = None
) -> Stack:
    """Start the requested services that do not run yet; returns once every service of the stack is up.

    Recorded services that run are kept, those that died are started again; without `cpus` and `s3` the recorded
    settings hold (in a new stack: all CPUs, no S3). ValueError for a setting that contradicts the recorded one;
    RuntimeError with the end of the log if a service does not come up.
    """
    if cpus is not None and cpus < 1:
        raise ValueError(f"--cpus {cpus}: must be 1 or more")
    if s3 is not None and s3 not in S3_SERVERS:
        raise ValueError(f"--s3 {s3}: unknown S3 server; the known ones are {', '.join(S3_SERVERS)}")
    folder = _create_private(folder)
    with FileLock(folder / "stack.lock"):
        registry = ProcessRegistry(folder)
        server = s3 or registry.recorded_setting("s3", "server")
        if server == "rgw":
            ceph.check_installed()
        if server is not None:
            registry.check_settings("s3", {"server": server})
            S3_SERVERS[str(server)](registry)  # before Ray, whose processes get the S3 server's environment
        _ensure_ray(registry, cpus)
        if mlflow or "mlflow" in registry.services:
            _ensure_mlflow(registry)
        for name in tuple(registry.services):
            _wait_or_stop(registry, name)
        return Stack(folder=folder, services=tuple(registry.services.values()), launched=tuple(registry.launched))


def down(folder: str | Path = DEFAULT_FOLDER) -> tuple[str, ...]:
    """Stop all services of the folder, last started first; returns the names of those that ran. Data and logs stay.

    A Ray head that runs work takes up to 30 s: it announces the end to its workers, so that a run can save itself.
    """
    folder = _resolved(folder)
    if not folder.is_dir():
        return ()
    with FileLock(folder / "stack.lock"):
        registry = ProcessRegistry(folder)
        return tuple(name for name in reversed(tuple(registry.services)) if registry.stop(name))


def status(folder: str | Path = DEFAULT_FOLDER) -> tuple[tuple[Service, State], ...]:
    """Each recorded service and its state: up, silent (runs, does not answer) or dead. Changes nothing."""
    return tuple((service, state(service)) for service in ProcessRegistry(_resolved(folder)).services.values())


def client_environment(stack: Stack) -> dict[str, str]:
    """The environment that a client of the stack needs, with the S3 server's keys and the path of Ray's token."""
    environment = dict(CHECKSUMS)
    for service in stack.services:
        environment |= service.client_env
    return environment


def _resolved(folder: str | Path) -> Path:
    return Path(folder).expanduser().resolve()


def _create_private(folder: str | Path) -> Path:
    """The folder, created if missing; only its owner may read it, because it holds keys."""
    folder = _resolved(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _wait_or_stop(registry: ProcessRegistry, name: str) -> None:
    """Wait until a service is up and record Ray's address; a service that does not come up is stopped."""
    service = registry.services[name]
    try:
        wait_until_up(service, deadline_s=START_S)
    except RuntimeError:
        registry.stop(name)  # else the next `up` would find it running and keep it
        raise
    if name == "ray":
        registry.put(replace(service, address=Path(service.probes[0]).read_text().strip()))


def _ensure_ray(registry: ProcessRegistry, cpus: int | None) -> None:
    count = cpus or registry.recorded_setting("ray", "cpus") or os.cpu_count() or 1
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(ray_token(registry.folder))}
    s3_env = registry.services["s3"].client_env if "s3" in registry.services else {}

    def make_spec(ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        gcs, dashboard, agent, metrics, client = ports
        options = {
            "port": gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "ray-client-server-port": client,
            # 0 to 0: workers bind ports that the system assigns, so that two stacks never share a range
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": count,
            "temp-dir": scratch,
        }
        # Ray replaces a loopback address by the machine's own and writes it to this file (reference/ray.md 0.4).
        address_file = f"{scratch}/ray_current_cluster"
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        healthz = (f"http://127.0.0.1:{dashboard}/api/gcs_healthz", f"http://127.0.0.1:{agent}/api/healthz")
        return ServiceSpec(
            command=start + [f"--{name}={value}" for name, value in options.items()],
            probes=(address_file, *healthz),
            # Workers inherit keys and priority from the head; at Ray's own nice 15 they starve on shared machines.
            process_env={**auth, **QUIET, **CHECKSUMS, **s3_env, "RAY_worker_niceness": "0"},
            client_env=auth,
        )

    registry.ensure("ray", make_spec, num_ports=5, settings={"cpus": count})


def dashboard(ray: Service) -> str:
    """The URL of the dashboard of a stack's Ray head, for jobs."""
    return f"http://127.0.0.1:{ray.ports[1]}"


def ray_token(folder: Path) -> Path:
    """The file with Ray's token, created with a random one if missing; only its owner may read it.

    Any number of processes may call it at once: all get the same whole token.
    """
    token = folder / "ray.token"
    if not token.is_file():
        with tempfile.NamedTemporaryFile("w", dir=folder) as file:  # readable by its owner only
            file.write(secrets.token_hex(32))
            file.flush()
            with suppress(FileExistsError):  # another process was faster
                os.link(file.name, token)
    return token


def _ensure_mlflow(registry: ProcessRegistry) -> None:
    data = registry.folder / "mlflow"
    data.mkdir(exist_ok=True)

    def make_spec(ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        address = f"http://127.0.0.1:{ports[0]}"
        store = ["--backend-store-uri", f"sqlite:///{data}/mlflow.db", "--artifacts-destination", f"{data}/artifacts"]
        serve = ["--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1"]
        return ServiceSpec(
            command=[sys.executable, "-m", "mlflow", "server", *store, *serve],
            address=address,
            probes=(f"{address}/health",),
            process_env={**QUIET, **CHECKSUMS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            client_env={"MLFLOW_TRACKING_URI": address},
        )

    registry.ensure("mlflow", make_spec, num_ports=1, settings={})


def start_moto(registry: ProcessRegistry) -> Service:
    """An S3 server that only imitates the API: it accepts any credentials and loses every object when it ends."""

    def make_spec(ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        address = f"http://127.0.0.1:{ports[0]}"
        return ServiceSpec(
            command=[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])],
            address=address,
            probes=(f"{address}/moto-api/",),
            client_env=ceph.s3_environment(address, access_key="antiphon", secret_key="antiphon"),
        )

    return registry.ensure("s3", make_spec, num_ports=1, settings={"server": "moto"})


S3_SERVERS: dict[str, Callable[[ProcessRegistry], Service]] = {"moto": start_moto, "rgw": ceph.start}
