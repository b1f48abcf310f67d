"""Runs of `antiphon` in child processes that kill themselves at a chosen point.

Forked from a server process that has imported torch already.
"""

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

# of a run; "sigterm" and "replace", which kills between writing a file and giving it its name, are points of their own
POINTS = ("step", "event-log", "part", "half-part", "before-marker", "after-marker", "remove", "finish")
PRELOADED = [
    "orchestrator.cli.app",
    "orchestrator.training.driver",
    "orchestrator.reports.run_page",
    "workloads.train",
    # imported where they are first needed, which takes a run of a few steps longer than all its steps
    "workloads.models.mn",
    "workloads.models.vit",
    "sklearn.metrics",
    "plotly.graph_objects",
    "torch._dynamo",
]


@dataclass(frozen=True)
class Kill:
    """The point at which a run kills itself, when it reaches it for the `count`-th time (from 1)."""

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
    """Run the command line in a child process, with standard output in `out`; returns the exit code.

    Its clock jumps by `clock` seconds while it runs; `env` is added to its environment.
    """
    process = start(arguments, out, kill, clock=clock, env=env)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def start(
    arguments: list[str],
    out: Path,
    kill: Kill | None = None,
    *,
    clock: float = 0.0,
    env: dict[str, str] | None = None,
) -> BaseProcess:
    """The same as `antiphon`, without waiting for the process to end."""
    return start_process(_child, arguments, str(out), kill, clock, env or {})


def start_process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function of an importable module in a child process that has imported torch already."""
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
    output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    errors = os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    if kill is not None:
        _install(kill)
    if clock:
        _make_clock_jump("time", clock)
        _make_clock_jump("time_ns", int(clock * 1e9))
    sys.argv = ["antiphon", *arguments]
    main()


def _install(kill: Kill) -> None:
    """Wrap the function that the run calls at the kill's point; calls before the kill do what the function does."""
    from orchestrator.runs.checkpoint_store import NewestAndBest
    from orchestrator.storage import object_store, published_folders
    from workloads.distill.train_state import TrainState
    from workloads.evaluate.deliver import checkpoint
    from workloads.runtime.event_log import EventLog

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kill.point == "step":  # of one model; a checkpoint just before may not be stored yet: "after-marker" is sure
        _call_before(TrainState, TrainState.step, kill.count, die)
    elif kill.point == "sigterm":
        _call_before(TrainState, TrainState.step, kill.count, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    elif kill.point == "event-log":
        _call_before(EventLog, EventLog.append, kill.count, _write_torn_line)
    elif kill.point == "replace":
        _call_before(os, os.replace, kill.count, die)
    elif kill.point in ("part", "half-part"):
        from fsspec.implementations.local import LocalFileSystem

        _call_before(
            LocalFileSystem, LocalFileSystem.put_file, kill.count, die if kill.point == "part" else _copy_half_file
        )
    elif kill.point == "before-marker":
        count = 2 + kill.count  # the recipe and the attempt come first
        _call_before(object_store, object_store.create_exclusively, count, die)
    elif kill.point == "after-marker":
        _call_before(NewestAndBest, NewestAndBest.removable, kill.count, die)
    elif kill.point == "remove":
        _call_before(published_folders, published_folders.remove_folder, kill.count, _remove_only_marker)
    elif kill.point == "finish":
        _call_before(checkpoint, checkpoint.weights_digest, kill.count, die)


def _make_clock_jump(name: str, by: float) -> None:
    real, calls = getattr(time, name), 0

    def jumped() -> float:
        nonlocal calls
        calls += 1
        return real() + (by if calls > 20 else 0)

    setattr(time, name, jumped)


def _call_before(owner: Any, real: Callable[..., Any], count: int, action: Callable[..., None]) -> None:
    """Replace the function `real` of a module or class by one that calls `action` first, the `count`-th time."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            action(*arguments, **named)
        return real(*arguments, **named)

    setattr(owner, real.__name__, counted)


def _write_torn_line(event_log: Any, record: dict[str, Any]) -> None:
    with event_log.path.open("ab") as file:
        file.write(json.dumps(record).encode()[:20])
    os.kill(os.getpid(), signal.SIGKILL)


def _copy_half_file(_: Any, source: str, target: str, **__: Any) -> None:
    shutil.copyfile(source, target)
    os.truncate(target, os.path.getsize(target) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _remove_only_marker(uri: str) -> None:
    (Path(uri) / "COMMITTED.json").unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)
