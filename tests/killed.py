"""Runs of `antiphon` that kill themselves at a chosen instant; forked from a server that has imported torch."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

POINTS = ("step", "spool", "part", "half-part", "before-marker", "after-marker", "tidy", "finish")
PRELOADED = [
    "orchestrator.cli.app",
    "orchestrator.training.driver",
    "orchestrator.reports.run_page",
    "workloads.train",
    "torch._dynamo",
]


@dataclass(frozen=True)
class Kill:
    """At which point, and at the how manieth time that the run comes to it."""

    point: str
    count: int


def antiphon(
    arguments: list[str],
    out: Path,
    kill: Kill | None = None,
    *,
    clock: float = 0.0,
    env: dict[str, str] | None = None,
) -> int:
    """Run the command line in a process of its own; its standard output goes to `out`. Returns the exit code.

    Its clock is `clock` seconds off; `env` is added to its environment.
    """
    process = begin(arguments, out, kill, clock=clock, env=env)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def begin(
    arguments: list[str],
    out: Path,
    kill: Kill | None = None,
    *,
    clock: float = 0.0,
    env: dict[str, str] | None = None,
) -> BaseProcess:
    """The same, without waiting for its end."""
    return forked(_child, arguments, str(out), kill, clock, env or {})


def forked(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A function of an importable module in a process of its own, which has torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def outcome(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text().splitlines()[-1])


def _child(arguments: list[str], out: str, kill: Kill | None, clock: float, env: dict[str, str]) -> None:
    from orchestrator.cli.app import main

    os.environ.update(env)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    errors = os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(errors, 2)
    if kill is not None:
        _arm(kill)
    if clock:
        _let_jump("time", clock)
        _let_jump("time_ns", int(clock * 1e9))
    sys.argv = ["antiphon", *arguments]
    main()


def _arm(kill: Kill) -> None:
    """Let the real function run into its own death; what it does otherwise stays as it is."""
    from orchestrator.runs.checkpoint_store import NewestAndBest
    from orchestrator.storage import object_store
    from workloads.distill.train_state import TrainState
    from workloads.evaluate.deliver import checkpoint
    from workloads.runtime.event_log import EventLog

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kill.point == "step":  # of one model: another may have learned in the same step already
        _before(TrainState, "step", kill.count, die)
    elif kill.point == "sigterm":
        _before(TrainState, "step", kill.count, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    elif kill.point == "spool":
        _before(EventLog, "append", kill.count, _torn_line)
    elif kill.point in ("part", "half-part"):
        from fsspec.implementations.local import LocalFileSystem

        _before(LocalFileSystem, "put_file", kill.count, die if kill.point == "part" else _half_file)
    elif kill.point == "before-marker":
        _before(object_store, "create_exclusively", 2 + kill.count, die)  # the recipe and the attempt come first
    elif kill.point == "after-marker":
        _before(NewestAndBest, "removable", kill.count, die)
    elif kill.point == "tidy":
        _before(object_store, "remove", kill.count, _only_the_marker)
    elif kill.point == "finish":
        _before(checkpoint, "weights_digest", kill.count, die)


def _let_jump(name: str, by: float) -> None:
    real, looks = getattr(time, name), 0

    def jumped() -> float:
        nonlocal looks
        looks += 1
        return real() + (by if looks > 20 else 0)

    setattr(time, name, jumped)


def _before(owner: Any, name: str, count: int, act: Callable[..., None]) -> None:
    real, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            act(*arguments, **named)
        return real(*arguments, **named)

    setattr(owner, name, counted)


def _torn_line(event_log: Any, record: dict[str, Any]) -> None:
    with event_log.path.open("ab") as file:
        file.write(json.dumps(record).encode()[:20])
    os.kill(os.getpid(), signal.SIGKILL)


def _half_file(_: Any, source: str, target: str, **__: Any) -> None:
    shutil.copyfile(source, target)
    os.truncate(target, os.path.getsize(target) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _only_the_marker(uri: str) -> None:
    (Path(uri) / "COMMITTED.json").unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)
