"""How much of a long command is done, on stderr: a bar in a terminal, else a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.cli.printing import print_note

LINE_EVERY_S = 20.0  # where there is no terminal


@contextmanager
def counted_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that is told how many of `what` are done, and of how many; nothing is shown before that."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what)
        return
    counted = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*counted, console=console)

    def show(done: int, total: int) -> None:
        bar.start()
        task = bar.task_ids[0] if bar.task_ids else bar.add_task(what, total=None)
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


class _Lines:
    """A line with what is done and the time left, at most every LINE_EVERY_S, and at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._first: tuple[float, int] | None = None  # time, and what was done then
        self._printed = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if now - self._printed < LINE_EVERY_S and done < total:
            return
        self._printed = now
        began, before = self._first
        left = (now - began) / (done - before) * (total - done) if done > before else 0.0
        ends = f"; {timedelta(seconds=round(left))} left" if left else ""
        print_note(f"{time.strftime('%H:%M:%S')} {self._what} {done}/{total}{ends}")
