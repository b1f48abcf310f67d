"""The progress bar: follows a run's spool and shows who learns and who teaches right now."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from workloads.spool import read_spool

LOOK_S = 0.5


@contextmanager
def progress(spool: Path, console: Console) -> Iterator[None]:
    """Show the spool's progress until the context ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stop = threading.Event()
    with Progress(*columns, console=console) as bar:
        follower = threading.Thread(target=_follow, args=(spool, bar, stop), daemon=True)
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()


def _follow(spool: Path, bar: Progress, stop: threading.Event) -> None:
    task = bar.add_task("starting", total=None)
    size = 0
    while not stop.wait(LOOK_S):
        if spool.stat().st_size == size:
            continue
        size = spool.stat().st_size
        _show(bar, task, read_spool(spool))
    _show(bar, task, read_spool(spool))


def _show(bar: Progress, task: Any, records: list[dict[str, Any]]) -> None:
    phases = [record for record in records if record["kind"] == "phase"]
    if not phases:
        return
    steps = [record["step"] for record in records if record["kind"] in ("metrics", "checkpoint")]
    bar.update(task, description=roles(phases[-1]), completed=max(steps, default=0), total=phases[-1]["total"])


def roles(phase: dict[str, Any]) -> str:
    """Who learns from whom in a phase, in a few words."""
    taught = {edge["student"]: edge["teacher"] for edge in phase["edges"]}
    learns = [f"{taught[name]} -> {name}" if name in taught else name for name in phase["trains"]]
    return f"phase {phase['index'] + 1}/{phase['of']}: {', '.join(learns)}"
