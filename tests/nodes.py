"""Ray nodes on one machine that reach one another over a network: each in a network namespace with its own address.

Each has its own process namespace too: a driver looks for the raylet of its node among all processes that it sees, and
prefers the head's. Needs root, iproute2 and util-linux; `ray_nodes` skips with a reason where they are missing. The
nodes see the same disk, and the same name of the machine, which in each of them resolves to 127.0.0.1, as Debian's
installer writes it to /etc/hosts.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil
import pytest

from cluster import stack

START_S, STARTS = 180.0, 3
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
GCS_PORT, DASHBOARD_PORT, REDIS_PORT = 6379, 8265, 6380


@dataclass
class Node:
    """One Ray node: its namespace, its address, and the process that has started its `ray start --block`."""

    namespace: str
    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL for all processes in the node's namespace, as a machine that loses power."""
        _kill(self.namespace)
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP for all processes in the node's namespace, as a machine that hangs: connections stay open."""
        for pid in _pids(self.namespace):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).suspend()

    def process_of(self, name: str) -> psutil.Process:
        """The only process of the node with this in its command line."""
        found = [psutil.Process(pid) for pid in _pids(self.namespace) if psutil.pid_exists(pid)]
        (process,) = [process for process in found if name in " ".join(process.cmdline())]
        return process

    def prefer(self, niceness: int) -> None:
        """How the node shares the processors with what else runs on the machine: negative, it comes first."""
        with suppress(OSError):  # a kernel without autogroups
            Path(f"/proc/{self.process.pid}/autogroup").write_text(str(niceness))

    def cut(self) -> None:
        """Take the node's network away, without a word to the others."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def join(self) -> None:
        """Give the network back."""
        _ip("-n", self.namespace, "link", "set", "eth0", "up")


@dataclass
class RayNodes:
    """A cluster; the first node is its head."""

    env: dict[str, str]
    folder: Path
    bridge: str
    subnet: str
    nodes: list[Node] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    started: dict[str, list[str]] = field(default_factory=dict)  # arguments of `ray start` by namespace

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def command(self, node: Node, *arguments: str) -> list[str]:
        """A command line that runs `arguments` on a node; its process waits for theirs and exits as they do."""
        (first,) = psutil.Process(node.process.pid).children()  # the first process of the node's namespace
        return ["nsenter", f"--target={first.pid}", "--net", "--mount", "--pid", *arguments]

    def ids(self) -> dict[str, str]:
        """Address -> Ray's id of each node that is alive."""
        program = (
            "import json, ray, sys\n"
            "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)\n"
            "print(json.dumps({node['NodeManagerAddress']: node['NodeID'] for node in ray.nodes() if node['Alive']}))\n"
        )
        words = self.command(self.head, sys.executable, "-c", program, self.address)
        done = subprocess.run(words, env=self.env, check=True, capture_output=True, text=True, timeout=START_S)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def programs(self, node: Node) -> list[str]:
        """The command lines of a node's processes."""
        return [" ".join(psutil.Process(pid).cmdline()) for pid in _pids(node.namespace) if psutil.pid_exists(pid)]

    def drain(self, node: Node, *, deadline_s: int) -> None:
        """Announce, as a cloud does for a spot node, that the node will be taken away."""
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        which = [f"--address={self.address}", f"--node-id={self.ids()[node.address]}"]
        deadline = f"--deadline-remaining-seconds={deadline_s}"
        words = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *which, *reason, deadline]
        subprocess.run(self.command(self.head, *words), env=self.env, check=True, capture_output=True)

    @contextmanager
    def hidden(self, node: Node, folder: Path) -> Iterator[None]:
        """While the context lasts, the node's processes find an empty folder there."""
        pid = _pids(node.namespace)[0]
        within = ["nsenter", f"--target={pid}", "--mount"]  # `ip netns exec` gives each node its own mounts
        subprocess.run([*within, "mount", "-t", "tmpfs", "none", folder], check=True)
        try:
            yield
        finally:
            subprocess.run([*within, "umount", folder], check=True)

    def add(self, cpus: int, *options: str) -> Node:
        """Start a node, and wait until it is part of the cluster.

        Ray gives a node some time to report itself, which a busy machine may not do; then the node is started again.
        """
        number = next(self._numbers)
        namespace, address = f"{self.bridge}n{number}", f"{self.subnet}.{number}"
        _add_namespace(namespace, self.bridge, f"{address}/24")
        dashboard = ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        if "RAY_REDIS_ADDRESS" in self.env:  # a head that starts again while others train starts little
            dashboard = ["--include-dashboard=false"]
        own = ["--head", f"--port={GCS_PORT}", *dashboard]
        where = own if number == 1 else [f"--address={self.address}"]
        scratch = f"--temp-dir={self.folder}/{number}"
        arguments = [*where, scratch, f"--node-ip-address={address}", f"--num-cpus={cpus}", *options]
        node = self._started(namespace, address, arguments)
        self.nodes.append(node)
        self._wait_until_alive(node)
        return node

    def restart(self, node: Node) -> None:
        """Start Ray again on a node that was killed: on its address, with its number of CPUs."""
        node.process = self._started(node.namespace, node.address, self.started[node.namespace]).process

    def remove(self, node: Node) -> None:
        """End a node for good, in whatever state it is."""
        node.kill()
        self.nodes.remove(node)
        del self.started[node.namespace]
        _remove_namespace(node.namespace)

    def _started(self, namespace: str, address: str, arguments: list[str]) -> Node:
        self.started[namespace] = arguments
        for _ in range(STARTS):
            node = Node(namespace, address, self._start(namespace, arguments))
            node.prefer(-10)  # Ray gives parts of a node 15 s to start, whatever is set: too little on a busy machine
            if self._has_started(node):
                node.prefer(0)
                return node
            node.kill()
        raise AssertionError((self.folder / f"{namespace}.log").read_text(errors="replace")[-2000:])

    def _start(self, namespace: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments]
        with (self.folder / f"{namespace}.log").open("wb") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", namespace, *OWN_PROCESSES, *start],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _has_started(self, node: Node) -> bool:
        """Wait for `ray start` to say that it is done; False where it ends or takes too long."""
        log, deadline = self.folder / f"{node.namespace}.log", time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if node.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _wait_until_alive(self, node: Node) -> None:
        program = (
            "import ray, sys, time\n"
            "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)\n"
            "def alive(): return [node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']]\n"
            "while sys.argv[2] not in alive(): time.sleep(0.2)\n"
        )
        probe = self.command(self.head, sys.executable, "-c", program, self.address, node.address)
        subprocess.run(probe, env=self.env, check=True, capture_output=True, timeout=START_S)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _pids(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def _kill(namespace: str) -> None:
    processes = [psutil.Process(pid) for pid in _pids(namespace) if psutil.pid_exists(pid)]
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):  # stopped, none of them starts another meanwhile
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)
    psutil.wait_procs(processes, timeout=30)


def _add_namespace(name: str, bridge: str, address: str) -> None:
    """A namespace with a link to the bridge, in which the machine's name means 127.0.0.1."""
    hosts = Path("/etc/netns") / name / "hosts"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    _ip("netns", "add", name)
    _ip("link", "add", f"{name}b", "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", f"{name}b", "master", bridge, "up")
    _ip("-n", name, "address", "add", address, "dev", "eth0")
    for link in ("lo", "eth0"):
        _ip("-n", name, "link", "set", link, "up")


def _remove_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


@contextmanager
def _redis(folder: Path, address: str) -> Iterator[dict[str, str]]:
    """A Redis that keeps what the head knows; the environment of a head that uses it."""
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server in PATH; on Debian: apt-get install redis-server")
    words = ["redis-server", "--bind", address, "--port", str(REDIS_PORT), "--protected-mode", "no", "--save", ""]
    with subprocess.Popen([*words, "--dir", folder], stdout=subprocess.DEVNULL) as server:
        try:
            # nodes and drivers wait so long for a new head, as KubeRay sets it; Ray's own limit is a minute
            yield {"RAY_REDIS_ADDRESS": f"{address}:{REDIS_PORT}", "RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        finally:
            server.kill()


@contextmanager
def ray_nodes(*cpus: int, redis: bool = False) -> Iterator[RayNodes]:
    """A cluster of one node per number of CPUs; skips where namespaces cannot be made.

    With `redis` its head may be killed and started again; it has no dashboard then.
    """
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("Ray nodes with networks of their own need root and iproute2 (Debian: apt-get install iproute2)")
    bridge = f"an{secrets.token_hex(2)}"
    subnet = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}"
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # short: sockets lie below it
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as refused:
            pytest.skip(f"network links cannot be made here: {refused.stderr.strip()}")
        cleanup.callback(_ip, "link", "delete", bridge)
        _ip("address", "add", f"{subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(stack.ray_token(folder))}
        env = {key: value for key, value in os.environ.items() if key not in ("GLOO_SOCKET_IFNAME", "RAY_ADDRESS")}
        env |= {**token, **stack.QUIET, **stack.CHECKSUMS, "RAY_worker_niceness": "0"}
        env |= {"RAY_raylet_start_wait_time_s": "60"}  # a busy machine needs longer than Ray's 30 s
        if redis:
            env |= cleanup.enter_context(_redis(folder, f"{subnet}.254"))
        cluster = RayNodes(env, folder, bridge, subnet)
        cleanup.callback(_stop, cluster)
        for number in cpus:
            cluster.add(number)
        yield cluster


def _stop(cluster: RayNodes) -> None:
    """End all nodes, those too that were about to start."""
    for namespace in reversed(cluster.started):
        _kill(namespace)
        _remove_namespace(namespace)
