"""A server of taggers in a process of its own: `antiphon serve` on a free port."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.process_registry import free_ports
from tests.hearing import hearing
from tests.processes import killed_at_the_end
from tests.tiny_search import ANTIPHON
from workloads.config.architectures import FrameMN, ViT
from workloads.config.recipe import Model
from workloads.models.tagger import build_tagger
from workloads.runtime import checkpoint

RATE, TAGS = 16_000, ("dog", "rain", "saw")
SAID = ("page", "metrics")  # how the lines begin that say its addresses
STARTS_S, TRIES = 240.0, 3
ARCHITECTURES: dict[str, Any] = {
    "vit": ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"),
    "frames": FrameMN(family="frame_mn", width=0.1, bn_momentum=0.1),
}


@dataclass(frozen=True)
class TaggerServer:
    """A server that answers; its taggers by name."""

    url: str
    metrics: str
    process: subprocess.Popen[str]
    taggers: dict[str, Path]

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold the taggers now."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ServeReplica:antiphon" in child.name()]


def publish(
    name: str, folder: Path, model: Model, *, tags: tuple[str, ...] = TAGS, clip_seconds: float = 1.0, rate: int = RATE
) -> Path:
    """A tagger whose answers to different sounds differ clearly."""
    options: dict[str, Any] = {"tags": tags, "labels": "multi", "clip_seconds": clip_seconds, "clip_rate": rate}
    tagger = hearing(build_tagger(model, name=name, seed=0, **options))
    state = {"kind": "tagger", "name": name, "model": asdict(tagger.model), "long_clips": "windows", **options}
    return checkpoint.write(folder / name, tensors={"weights": tagger.state_dict()}, state=state | {"tags": list(tags)})


def publish_tagger(name: str, folder: Path) -> Path:
    """One of the small taggers of clips of a second."""
    return publish(name, folder, Model(arch=ARCHITECTURES[name]))


@contextmanager
def serving(folder: Path, *options: str, taggers: dict[str, Path] | None = None) -> Iterator[TaggerServer]:
    """A server of both small taggers, or of others, stopped as a user stops one.

    A machine that is too busy to start Ray is asked again.
    """
    taggers = taggers or {name: publish_tagger(name, folder) for name in ARCHITECTURES}
    for attempt in range(TRIES):
        port, log = free_ports(1)[0], folder / f"server-{attempt}.log"
        words = [ANTIPHON, "serve", *map(str, taggers.values()), "--port", str(port), *options]
        with log.open("w") as written:
            process = subprocess.Popen(words, stdout=written, stderr=subprocess.STDOUT, text=True)
        with killed_at_the_end(process):
            if not _is_up(process, log):
                continue
            lines = dict(line.split(maxsplit=1) for line in log.read_text().splitlines() if line.startswith(SAID))
            yield TaggerServer(lines["page"].rstrip("/"), lines["metrics"], process, taggers)
            _stop(process)
            return
    raise AssertionError(f"{TRIES} times no server: {log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[str]) -> None:
    """Ctrl-C ends the server, with exit code 0, and all that it has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=STARTS_S) == 0
    left = psutil.wait_procs(children, timeout=60)[1]
    assert not left, f"still there after Ctrl-C: {left}"


def _is_up(process: subprocess.Popen[str], log: Path) -> bool:
    """Wait until the server has said its addresses; False where it has ended without."""
    deadline = time.monotonic() + STARTS_S
    while "metrics " not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        if process.poll() is not None:
            return False
        time.sleep(0.2)
    return True
