"""Faults of one Ray node of several, and how soon a command notices them and goes on; tests of them mark `faults`."""

import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.nodes import Node, RayNodes, ray_nodes
from tests.processes import killed_at_the_end
from workloads.runtime.event_log import read_event_log

Fault = Callable[[RayNodes, Node], None]
CUT_S = 30.0
NOTICE_S = 5
FROZEN_S, FREE_S = 3.0, 0.3  # of a slow disk, in turn
WAIT_S = 900.0


def kill_raylet(nodes: RayNodes, node: Node) -> None:
    node.process_of("raylet/raylet").kill()


def kill(nodes: RayNodes, node: Node) -> None:
    node.kill()


def freeze(nodes: RayNodes, node: Node) -> None:
    node.freeze()


def cut(nodes: RayNodes, node: Node) -> None:
    node.cut()


def cut_for_30_s(nodes: RayNodes, node: Node) -> None:
    node.cut()
    time.sleep(CUT_S)
    node.join()


def take_away(nodes: RayNodes, node: Node) -> None:
    """As an autoscaler or a cloud does: a notice, and the node is gone when its time is over."""
    nodes.drain(node, deadline_s=NOTICE_S)
    time.sleep(NOTICE_S)
    node.kill()


def restart_head(nodes: RayNodes, node: Node) -> None:
    """The head is lost, whatever the node; another one takes its place, and reads what it was from Redis."""
    nodes.head.kill()
    nodes.restart(nodes.head)


class Command:
    """A command on a node while the context lasts, and when it wrote which line to standard error."""

    def __init__(self, nodes: RayNodes, node: Node, words: list[str], **env: str) -> None:
        self._cleanup = ExitStack()
        self._out = self._cleanup.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self.process = subprocess.Popen(
            nodes.command(node, *words), env={**nodes.env, **env}, stdout=self._out, stderr=subprocess.PIPE, text=True
        )
        self._lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._cleanup.enter_context(killed_at_the_end(self.process))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append((time.time(), line))

    @property
    def err(self) -> str:
        return "".join(line for _, line in self._lines)

    def said(self, text: str, *, since: float) -> float | None:
        """How many seconds after `since` it first wrote a line with this text; None where it has not."""
        return next((at - since for at, line in self._lines if text in line and at >= since), None)

    def until(self, condition: Callable[[], object]) -> None:
        """Return once the condition holds; fail where the command ends before, or after some minutes."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.err[-3000:]
            assert time.monotonic() < deadline, self.err[-3000:]
            time.sleep(0.05)

    def end(self, code: int = 0) -> str:
        """Wait until it has ended with this exit code; returns its standard output."""
        assert self.process.wait(WAIT_S) == code, self.err[-3000:]
        self._reader.join()
        self._out.seek(0)
        return self._out.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()


def loser_of(one: Command, other: Command) -> tuple[Command, Command]:
    """Of two commands that do the same, the one that ends first, once it has, and the one that goes on."""
    ended: list[Command] = []
    while not ended:
        ended = [command for command in (one, other) if command.process.poll() is not None]
        time.sleep(0.1)
    return (one, other) if ended == [one] else (other, one)


def times_of_run(event_log: Path, since: float, end: float = math.inf) -> dict[str, float | int | None]:
    """Columns of the fault table for a run with a fault at `since` (seconds since the epoch), and another one at `end`.

    It is noticed when Ray's controller records that workers failed or leave. Where they start again, it is over with
    their first step, or with the result where no step is left; else after the longest time between two steps, of which
    there is none where all steps were done.
    """
    records = [record for record in read_event_log(event_log) if record["t"] / 1000 < end]
    steps = [(record["t"] / 1000, record["step"]) for record in records if record["kind"] == "metrics"]
    after = [record for record in records if record["t"] / 1000 >= since]
    noticed = next((record["t"] for record in after if record["kind"] in ("worker-failed", "leaving")), None)
    times: dict[str, float | int | None] = {"detected": None if noticed is None else noticed / 1000 - since}
    start = next((number for number, record in enumerate(after) if record["kind"] == "start"), None)
    if start is None:
        moments = [max(at for at, _ in steps if at < since), *(at for at, _ in steps if at >= since)]
        longest = max((later - earlier for earlier, later in pairwise(moments)), default=None)
        return times | {"seconds": longest, "repeated": 0}
    again = next(record for record in after[start:] if record["kind"] in ("metrics", "result"))
    done = max(step for at, step in steps if at < after[start]["t"] / 1000)
    return times | {"seconds": again["t"] / 1000 - since, "repeated": max(done - after[start]["step"], 0)}


@contextmanager
def slow_disk(folder: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder, with a file system of its own, and a function from whose call on each write takes seconds.

    Its writes then wait three seconds out of 3.3. A node sees it if it was started later.
    """
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(256 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, text=True)
    if mounted.returncode:
        yield folder, lambda: pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        return
    ended = threading.Event()

    def alternate() -> None:
        while not ended.is_set():
            subprocess.run(["fsfreeze", "--freeze", folder], check=True)
            ended.wait(FROZEN_S)
            subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)
            ended.wait(FREE_S)

    alternating = threading.Thread(target=alternate, daemon=True)
    try:
        yield folder, alternating.start
    finally:
        ended.set()
        if alternating.ident is not None:
            alternating.join()
        subprocess.run(["umount", "--lazy", folder], check=True)
        image.unlink()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Callable[[], None]]]:
    with slow_disk(tmp_path_factory.mktemp("slow") / "disk") as both:
        yield both


@pytest.fixture(scope="module")
def nodes(disk: object) -> Iterator[RayNodes]:
    """A head without CPUs and a node with one; both see the disk."""
    with ray_nodes(0, 1, redis=True) as cluster:
        yield cluster


@pytest.fixture
def add_node(nodes: RayNodes) -> Iterator[Callable[[], Node]]:
    """Adds another node with one CPU, for one test."""
    added: list[Node] = []

    def add() -> Node:
        added.append(nodes.add(1))
        return added[-1]

    yield add
    for node in added:
        nodes.remove(node)
