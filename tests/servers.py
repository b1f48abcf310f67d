"""Servers for tests, started on free ports and stopped by pid; a plugin: `pytest_plugins` in tests/conftest.py."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import ceph, stack
from cluster.process_registry import ProcessRegistry, ServiceSpec, free_ports
from cluster.processes import leader, wait_until_up


@dataclass(frozen=True)
class S3Server:
    """An endpoint URL, the environment that its clients and their children need, and the folder of its record."""

    endpoint: str
    env: dict[str, str]
    folder: Path

    def client(self) -> Any:
        """A boto3 client with the server's credentials."""
        import boto3

        keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        credentials = {argument: self.env[name] for argument, name in keys.items()}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **credentials)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto, which only imitates the API and accepts any credentials; without buckets."""
    yield from _s3_server(tmp_path_factory.mktemp("s3"), "moto")


@pytest.fixture(scope="session")
def rgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph RGW: checks credentials, supports exclusive creates, keeps objects after kill -9. Skips if not installed."""
    try:
        ceph.check_installed()
    except ValueError as missing:
        pytest.skip(str(missing))
    yield from _s3_server(tmp_path_factory.mktemp("rgw"), "rgw")


@pytest.fixture
def kill_server(rgw_server: S3Server) -> Iterator[Callable[[], None]]:
    """Sends SIGKILL to all of Ceph's daemons; they are started again after the test."""

    def kill() -> None:
        daemons = [psutil.Process(service.pid) for service in ProcessRegistry(rgw_server.folder).services.values()]
        for daemon in daemons:
            daemon.kill()
        psutil.wait_procs(daemons, timeout=10)

    yield kill
    start_server(rgw_server)  # also if the test failed


def start_server(server: S3Server) -> None:
    """Start Ceph's daemons again, on the same ports and objects."""
    wait_until_up(ceph.start(ProcessRegistry(server.folder)), deadline_s=90)


def _record_command_lines(folder: Path) -> str:
    """A PATH on which each of Ceph's programs first writes its command line to `folder`/command-lines."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ceph.BINARIES:
        script = f'#!/bin/sh\necho "{name} $*" >> "{folder}/command-lines"\nexec "{shutil.which(name)}" "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


def _s3_server(folder: Path, kind: str) -> Iterator[S3Server]:
    registry = ProcessRegistry(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if kind == "rgw":
                patch.setenv("PATH", _record_command_lines(folder))
            service = stack.S3_SERVERS[kind](registry)
        wait_until_up(service, deadline_s=60)
        yield S3Server(endpoint=service.address, env={**stack.CHECKSUMS, **service.client_env}, folder=folder)
    finally:
        registry = ProcessRegistry(folder)  # read again: a test may have restarted something
        for name in reversed(tuple(registry.services)):
            registry.stop(name)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server on loopback that accepts connections without a password."""

    bin: Path
    port: int

    def database(self, name: str) -> str:
        """SQLAlchemy's URI of a new, empty database; the driver is named, or SQLAlchemy would take psycopg 3."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow"]
        subprocess.run([self.bin / "createdb", *where, name], check=True, capture_output=True)
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL from the system's packages; skips if it, or its Python driver, is not installed."""
    candidates = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    programs = next((Path(path).resolve().parent for path in candidates if path), None)
    if programs is None:
        pytest.skip("no initdb in PATH nor in /usr/lib/postgresql; on Debian: apt-get install postgresql")
    pytest.importorskip("psycopg2", reason="no psycopg2; uv pip install 'antiphon[postgres]'")
    # Not below pytest's folder, which the server's user cannot read: PostgreSQL refuses to run as root.
    home = Path(tempfile.mkdtemp(prefix="antiphon-pg-", dir="/tmp"))
    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    as_owner: dict[str, Any] = {"cwd": home, "check": True, "stdout": subprocess.DEVNULL, **user}
    if os.geteuid() == 0:
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
    else:
        as_owner = {key: value for key, value in as_owner.items() if key not in user}
    data, (port,) = home / "data", free_ports(1)
    listen = f"-p {port} -h 127.0.0.1 -k {home} -c fsync=off"
    try:
        initdb = [programs / "initdb", "-D", data, "-U", "mlflow", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], **as_owner)
        subprocess.run([programs / "pg_ctl", "-D", data, "-o", listen, "-l", home / "log", "-w", "start"], **as_owner)
        yield Postgres(programs, port)
    finally:
        if (data / "postmaster.pid").is_file():  # pg_ctl reads the pid there
            subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **as_owner)
        shutil.rmtree(home)


class MlflowServer:
    """An MLflow server with the same address, database and artifacts after every restart."""

    def __init__(self, home: Path, store: str, s3: S3Server | None) -> None:
        self.name = home.name
        self._registry, self._store, self._s3 = ProcessRegistry(home), store, s3
        self._folder = home / "artifacts"  # or the bucket named like `home`
        self.start()

    @property
    def uri(self) -> str:
        return self._registry.services["mlflow"].address

    def start(self) -> None:
        """Start the server, or restart it on its old port; returns once it answers."""
        service = self._registry.ensure("mlflow", self._make_spec, num_ports=1, settings={})
        wait_until_up(service, deadline_s=stack.START_S)

    def _make_spec(self, ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        address = f"http://127.0.0.1:{ports[0]}"
        artifacts = f"s3://{self.name}/proxied" if self._s3 else str(self._folder)
        store = ["--backend-store-uri", self._store, "--artifacts-destination", artifacts]
        serve = ["--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1"]
        return ServiceSpec(
            command=[sys.executable, "-m", "mlflow", "server", *store, *serve],
            address=address,
            probes=(f"{address}/health",),
            process_env={
                **stack.QUIET,
                **(self._s3.env if self._s3 else {}),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )

    def artifacts(self) -> list[str]:
        """The paths of all artifacts in their store."""
        if self._s3 is None:
            return [str(path) for path in self._folder.rglob("*") if path.is_file()]
        pages = self._s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def copy_contents(self, folder: Path) -> None:
        """Write all that the server holds to files in `folder`, a new one: its database and its artifacts."""
        folder.mkdir()
        if self._store.startswith("sqlite:///"):
            for file in Path(self._store.removeprefix("sqlite:///")).parent.glob("mlflow.db*"):
                shutil.copy(file, folder)
        else:
            dump = [shutil.which("pg_dump") or "pg_dump", "--file", folder / "database.sql"]
            subprocess.run([*dump, "--dbname", self._store.replace("+psycopg2", "")], check=True)
        if self._s3 is None:
            shutil.copytree(self._folder, folder / "artifacts")
            return
        for key in self.artifacts():
            (folder / "artifacts" / key).parent.mkdir(parents=True, exist_ok=True)
            self._s3.client().download_file(self.name, key, str(folder / "artifacts" / key))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and the workers that it forked; after SIGKILL it is reaped."""
        service = self._registry.services["mlflow"]
        if leader(service) is None:
            return
        os.killpg(service.pid, number)  # the registry starts every service as the leader of its own process group
        if number == signal.SIGKILL:
            os.waitpid(service.pid, 0)

    def stop(self) -> None:
        """Stop the server with SIGKILL and remove its record."""
        self.signal(signal.SIGKILL)
        self._registry.stop("mlflow")


@pytest.fixture(scope="module", params=["postgres-s3", pytest.param("sqlite", marks=pytest.mark.faults)])
def mlflow_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on PostgreSQL and S3, as teams run it, and one on SQLite and a folder."""
    home = tmp_path_factory.mktemp("mlflow")
    store, s3 = f"sqlite:///{home}/mlflow.db", None
    if request.param == "postgres-s3":
        s3 = request.getfixturevalue("s3_server")
        s3.client().create_bucket(Bucket=home.name)
        store = request.getfixturevalue("postgres").database(home.name)
    server = MlflowServer(home, store, s3)
    try:
        yield server
    finally:
        server.stop()
