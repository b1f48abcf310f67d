"""Ceph RGW on one machine: an S3 server that checks credentials and keeps its objects after kill -9.

Owns the four daemons (monitor, manager, OSD, gateway) and the files of their cluster, as measured in
reference/storage.md 1.4. One disk and one copy of each object: for tests and a single machine. Data stay in the stack
folder's `rgw`. Keys are made by Ceph's own programs and read from their output or from files: every user of a machine
can read command lines.
"""

import json
import shutil
import subprocess
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from cluster.json_records import read_record
from cluster.process_registry import ProcessRegistry, ServiceSpec, free_ports, is_free, write_atomically
from cluster.processes import Service, leader, wait_until_up

PACKAGES = "radosgw ceph-mon ceph-osd ceph-mgr ceph-common"
BINARIES = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph", "ceph-authtool", "monmaptool")
SETTINGS: dict[str, str | int] = {"server": "rgw"}
_REMAKE = "`antiphon cluster down`, then remove {home} with its data"
COMMAND_S = 120.0  # ceph's own commands wait for daemons that are still starting

CONF = """\
[global]
fsid = {fsid}
mon_host = {mon_host}
public_network = 127.0.0.0/8
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 500
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
run_dir = {home}/run
admin_socket = {home}/run/$name.asok
log_file = {home}/log/$name.log
crash_dir = {home}/log
keyring = {home}/$name.keyring
[mon.a]
mon_data = {home}/mon
# It would refuse to start below 5 % of free space, which on a large disk is far more than it needs.
mon_data_avail_warn = 1
mon_data_avail_crit = 0
[mgr.x]
mgr_data = {home}/mgr
[osd.0]
osd_data = {home}/osd
osd_objectstore = bluestore
bluestore_block_size = 10737418240
osd_memory_target = 939524096
[client.rgw.a]
rgw_data = {home}/rgw
rgw_enable_apis = s3, admin
"""


@dataclass(frozen=True)
class Identity:
    """What never changes in one Ceph cluster; the monitor's ports are stored in its monitor map."""

    fsid: str
    osd: str
    mon_ports: tuple[int, int]

    @property
    def mon_host(self) -> str:
        return f"[v2:127.0.0.1:{self.mon_ports[0]},v1:127.0.0.1:{self.mon_ports[1]}]"


@dataclass(frozen=True)
class Keys:
    """What a client of the gateway signs its requests with."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class User:
    """What radosgw-admin prints of the user it has created, as far as it is read."""

    keys: Annotated[list[Keys], MinLen(1)]


def s3_environment(address: str, *, access_key: str, secret_key: str) -> dict[str, str]:
    """The environment variables from which botocore, s3fs, Arrow and MLflow take an S3 server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "MLFLOW_S3_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def check_installed() -> None:
    """ValueError that names Debian's packages if one of the programs is missing."""
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if missing:
        raise ValueError(
            f"s3 = 'rgw': not installed: {', '.join(missing)}; on Debian: "
            f"apt-get install --no-install-recommends {PACKAGES}"
        )


def start(registry: ProcessRegistry) -> Service:
    """Start the daemons that do not run, and first create the cluster if the folder holds none; returns the gateway.

    The caller holds the stack folder's lock. A cluster whose creation was interrupted has no `made` marker: its daemons
    are stopped, its files removed, and it is created again. Waits for the monitor, not for the gateway.
    """
    home = registry.folder / "rgw"
    socket_path = home / "run" / "client.rgw.a.asok"
    if len(str(socket_path)) > 100:
        raise ValueError(f"{socket_path}: a UNIX socket's path holds about 100 characters; choose a shorter --folder")
    made = (home / "made").is_file()
    if not made:
        for name in [name for name in registry.services if name.startswith("s3")]:
            registry.stop(name)
        shutil.rmtree(home, ignore_errors=True)
        _create_files(home)
    identity = _read_identity(home)
    keys = _read_keys(home) if made else None  # before a daemon starts
    if not made:
        _create_monitor(home, identity)
    _ensure_monitor(registry, home, identity)
    if not made:
        _create_keys_and_disk(home, identity)
    _ensure_daemon(registry, home, "s3-mgr", ["ceph-mgr", "-i", "x"])
    _ensure_daemon(registry, home, "s3-osd", ["ceph-osd", "-i", "0"])
    if not made:
        user = _run(home, "radosgw-admin", "user", "create", "--uid", "antiphon", "--display-name", "antiphon")
        write_atomically(home / "user.json", user)
        write_atomically(home / "made", "")
    return _ensure_gateway(registry, home, keys or _read_keys(home))


def _create_files(home: Path) -> None:
    for name in ("mon", "mgr", "osd", "log", "run", "rgw"):
        (home / name).mkdir(parents=True)
    first, second = free_ports(2)
    identity = Identity(str(uuid.uuid4()), str(uuid.uuid4()), (first, second))
    write_atomically(home / "identity.json", json.dumps(asdict(identity)))
    write_atomically(home / "ceph.conf", CONF.format(fsid=identity.fsid, mon_host=identity.mon_host, home=home))


def _read_identity(home: Path) -> Identity:
    fix = f"its cluster cannot be started again; {_REMAKE.format(home=home)}"
    return read_record(home / "identity.json", Identity, fix=fix)


def _read_keys(home: Path) -> Keys:
    fix = f"the keys of its clients are not known; {_REMAKE.format(home=home)}"
    return read_record(home / "user.json", User, fix=fix).keys[0]


def _run(home: Path, program: str, *arguments: str, stdin: str | None = None) -> str:
    """Run one of Ceph's commands and return its stdout; RuntimeError with the end of its stderr if it fails."""
    command = [program, "-c", str(home / "ceph.conf"), *arguments]
    try:
        done = subprocess.run(command, cwd=home, input=stdin, capture_output=True, text=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{program} {arguments[0]} did not end within {COMMAND_S:.0f} s; logs: {home}/log") from None
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments[:2])} failed ({done.returncode}):\n{done.stderr[-1500:]}")
    return done.stdout


def _tool(home: Path, program: str, *arguments: str) -> str:
    """Run ceph-authtool or monmaptool, which work on files alone and take no configuration."""
    return subprocess.run([program, *arguments], cwd=home, check=True, capture_output=True, text=True).stdout


def _create_monitor(home: Path, identity: Identity) -> None:
    caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    _tool(home, "ceph-authtool", "--create-keyring", "client.admin.keyring", "--gen-key", "-n", "client.admin", *caps)
    monitor = ["ceph-authtool", "mon.a.keyring"]
    _tool(home, *monitor, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    _tool(home, *monitor, "--import-keyring", "client.admin.keyring")
    _tool(home, "monmaptool", "--create", "--fsid", identity.fsid, "--addv", "a", identity.mon_host, "monmap")
    _run(home, "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "mon.a.keyring")


def _ensure_monitor(registry: ProcessRegistry, home: Path, identity: Identity) -> None:
    recorded = registry.services.get("s3-mon")
    running = recorded is not None and leader(recorded) is not None
    taken = [port for port in identity.mon_ports if not is_free(port)]
    if taken and not running:
        raise ValueError(
            f"port {taken[0]}: Ceph's monitor in {home} was created for it and cannot move, but another program "
            "listens there; stop that program, or use another --folder"
        )
    _wait_for_monitor(home, _ensure_daemon(registry, home, "s3-mon", ["ceph-mon", "-i", "a"]))


def _wait_for_monitor(home: Path, monitor: Service) -> None:
    """Ask the monitor until it answers; RuntimeError with its log if it ends or takes longer than COMMAND_S."""
    deadline = time.monotonic() + COMMAND_S
    while True:
        wait_until_up(monitor, deadline_s=COMMAND_S)  # without probes: that it runs
        try:
            _run(home, "ceph", "--connect-timeout", "5", "mon", "stat")
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise


def _create_keys_and_disk(home: Path, identity: Identity) -> None:
    mgr_caps = ["mon", "allow profile mgr", "osd", "allow *"]
    gateway_caps = ["mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"]
    for name, caps in {"mgr.x": mgr_caps, "client.rgw.a": gateway_caps}.items():
        write_atomically(home / f"{name}.keyring", _run(home, "ceph", "auth", "get-or-create", name, *caps))
    _tool(home, "ceph-authtool", "--create-keyring", "osd.0.keyring", "-n", "osd.0", "--gen-key")
    key = _tool(home, "ceph-authtool", "osd.0.keyring", "-n", "osd.0", "--print-key").strip()
    _run(home, "ceph", "osd", "new", identity.osd, "-i", "-", stdin=json.dumps({"cephx_secret": key}))
    _run(home, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity.osd)


def _ensure_daemon(registry: ProcessRegistry, home: Path, name: str, command: list[str]) -> Service:
    spec = ServiceSpec(command=[*command, "-c", str(home / "ceph.conf"), "-f"])
    return registry.ensure(name, lambda ports, scratch: spec, num_ports=0, settings=SETTINGS)


def _ensure_gateway(registry: ProcessRegistry, home: Path, keys: Keys) -> Service:
    def make_spec(ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        address = f"http://127.0.0.1:{ports[0]}"
        # Without tcp_nodelay a small GET takes 48 ms instead of 7 (reference/storage.md 1.2).
        listen = f"--rgw_frontends=beast endpoint=127.0.0.1:{ports[0]} tcp_nodelay=1"
        return ServiceSpec(
            command=["radosgw", "-n", "client.rgw.a", "-c", str(home / "ceph.conf"), "-f", listen],
            address=address,
            probes=(address,),
            client_env=s3_environment(address, access_key=keys.access_key, secret_key=keys.secret_key),
        )

    return registry.ensure("s3", make_spec, num_ports=1, settings=SETTINGS)
