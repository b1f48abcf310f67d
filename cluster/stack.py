"""The local stack: a Ray head, an MLflow server and an S3 server on free ports of this machine.

Owns what each of them is started with and what a client needs to reach them. All are child programs: nothing of Ray
or MLflow is imported. Measured facts behind the options: reference/ray.md 0 and 5, reference/storage.md 2 and 3.
"""

import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from cluster import ceph
from cluster.process_registry import Book, Program
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
    """The recorded services of a folder, and which of them this call of `up` launched."""

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
    """Start what is wanted and does not run yet; returns once every service of the stack answers.

    Services of the folder that run are kept, those that died come back; `cpus` and `s3` left out mean as it was (in a
    new stack: all CPUs, no S3). ValueError for a wish that contradicts the stack; RuntimeError with the end of the log
    if a service does not come up.
    """
    if cpus is not None and cpus < 1:
        raise ValueError(f"cpus = {cpus}: must be 1 or more")
    if s3 is not None and s3 not in S3_SERVERS:
        raise ValueError(f"s3 = {s3!r}: unknown S3 server; the known ones are {', '.join(S3_SERVERS)}")
    folder = _private(folder)
    with FileLock(folder / "stack.lock"):
        book = Book(folder)
        server = s3 or book.setting("s3", "server")
        if server == "rgw":
            ceph.check_installed()
        if server is not None:
            book.check("s3", {"server": server})  # before minutes are spent on the others
        if server is not None:
            S3_SERVERS[str(server)](book)  # first: what is started after it inherits its environment
        _ensure_ray(book, cpus)
        if mlflow or "mlflow" in book.services:
            _ensure_mlflow(book)
        for name in tuple(book.services):
            _settle(book, name)
        return Stack(folder=folder, services=tuple(book.services.values()), launched=tuple(book.launched))


def down(folder: str | Path = DEFAULT_FOLDER) -> tuple[str, ...]:
    """Stop all services of the folder, last started first; the names of those that ran. Data and logs stay.

    A Ray head with work on it takes up to 30 s: it announces the end to its workers, so that a run can save itself.
    """
    folder = _resolved(folder)
    if not folder.is_dir():
        return ()
    with FileLock(folder / "stack.lock"):
        book = Book(folder)
        return tuple(name for name in reversed(tuple(book.services)) if book.stop(name))


def status(folder: str | Path = DEFAULT_FOLDER) -> tuple[tuple[Service, State], ...]:
    """Each recorded service and whether it is up, silent (runs, does not answer) or dead; changes nothing."""
    return tuple((service, state(service)) for service in Book(_resolved(folder)).services.values())


def client_environment(stack: Stack) -> dict[str, str]:
    """The environment that a client of the stack needs, keys of the S3 server and the path of Ray's token included."""
    environment = dict(CHECKSUMS)
    for service in stack.services:
        environment |= service.client_env
    return environment


def _resolved(folder: str | Path) -> Path:
    return Path(folder).expanduser().resolve()


def _private(folder: str | Path) -> Path:
    """The folder, made if need be; keys lie in it, so it is the owner's alone."""
    folder = _resolved(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _settle(book: Book, name: str) -> None:
    service = book.services[name]
    try:
        wait_until_up(service, deadline_s=START_S)
    except RuntimeError:
        book.stop(name)  # what does not serve must not be taken for running by the next `up`
        raise
    if name == "ray":
        book.put(replace(service, address=Path(service.probes[0]).read_text().strip()))


def _ensure_ray(book: Book, cpus: int | None) -> None:
    count = cpus or book.setting("ray", "cpus") or os.cpu_count() or 1
    token = book.folder / "ray.token"
    if not token.is_file():
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    s3_env = book.services["s3"].client_env if "s3" in book.services else {}

    def program(ports: tuple[int, ...], scratch: Path) -> Program:
        gcs, dashboard, agent, metrics, client = ports
        options = {
            "port": gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "metrics-export-port": metrics,
            "ray-client-server-port": client,
            # 0 to 0: workers bind what the system gives them, so that two stacks never share a range.
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": count,
            "temp-dir": scratch,
        }
        # Ray replaces a loopback address by the machine's own and tells here which (reference/ray.md 0.4).
        told = f"{scratch}/ray_current_cluster"
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return Program(
            command=start + [f"--{name}={value}" for name, value in options.items()],
            probes=(told, f"http://127.0.0.1:{dashboard}/api/gcs_healthz", f"http://127.0.0.1:{agent}/api/healthz"),
            # Workers get keys and priority from the head; at Ray's own nice 15 they starve on shared machines.
            process_env={**auth, **QUIET, **CHECKSUMS, **s3_env, "RAY_worker_niceness": "0"},
            client_env=auth,
        )

    book.ensure("ray", program, num_ports=5, settings={"cpus": count})


def _ensure_mlflow(book: Book) -> None:
    data = book.folder / "mlflow"
    data.mkdir(exist_ok=True)

    def program(ports: tuple[int, ...], scratch: Path) -> Program:
        address = f"http://127.0.0.1:{ports[0]}"
        store = ["--backend-store-uri", f"sqlite:///{data}/mlflow.db", "--artifacts-destination", f"{data}/artifacts"]
        serve = ["--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1"]
        return Program(
            command=[sys.executable, "-m", "mlflow", "server", *store, *serve],
            address=address,
            probes=(f"{address}/health",),
            process_env={**QUIET, **CHECKSUMS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            client_env={"MLFLOW_TRACKING_URI": address},
        )

    book.ensure("mlflow", program, num_ports=1, settings={})


def start_moto(book: Book) -> Service:
    """An S3 server for the shape of the API only: it takes any credentials and forgets everything when it ends."""

    def program(ports: tuple[int, ...], scratch: Path) -> Program:
        address = f"http://127.0.0.1:{ports[0]}"
        return Program(
            command=[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])],
            address=address,
            probes=(f"{address}/moto-api/",),
            client_env=ceph.s3_environment(address, access_key="antiphon", secret_key="antiphon"),
        )

    return book.ensure("s3", program, num_ports=1, settings={"server": "moto"})


S3_SERVERS: dict[str, Callable[[Book], Service]] = {"moto": start_moto, "rgw": ceph.start}
