"""`antiphon teach`: fill a store with what teachers say of clips. Parses and prints; `orchestrator/teaching/` works."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.cli.options import (
    EXIT_CODES,
    AddressOption,
    JsonOption,
    SetOption,
    command_line,
    only_json,
)
from orchestrator.cli.printing import print_note, print_out, print_warning

LINE_EVERY_S = 20.0  # where there is no terminal


def teach(
    teach_recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="The recipe of a store: a shipped one's name, or a .toml/.json file."),
    ],
    out: Annotated[str, typer.Option(help="The store: a new folder or s3://bucket/prefix, or one to go on with.")],
    settings: SetOption = None,
    workers: Annotated[int, typer.Option(help="Ray workers; each loads all teachers.")] = 1,
    address: AddressOption = "",
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    patience: Annotated[float, typer.Option(help="Seconds to retry while the storage is unavailable.")] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Store what the teachers of a recipe say of every clip of its data. Killed: run it again."""
    from orchestrator.recipes.loader import load_teach_recipe

    loaded = load_teach_recipe(teach_recipe, settings)
    from orchestrator.teaching.fill import fill_store
    from orchestrator.teaching.job import TeachRequest

    request = TeachRequest(loaded, out, workers=workers, address=address, local=local, patience_s=patience)
    with only_json(as_json) as emit:
        with _shown_progress() as on_shard:
            result = fill_store(request, on_shard=on_shard, warn=print_warning)
        emit(result)
        if result["status"] == "done" and not as_json:
            print_out(f"{result['rows']:,} rows of {result['clips']:,} clips in {result['views']} views: {out}")
    if result["status"] == "preempted":
        print_note(f"stopped: the shards that are written stay; the same command goes on: {command_line()}")
    raise typer.Exit(EXIT_CODES[result["status"]])


@contextmanager
def _shown_progress() -> Iterator[Callable[[int, int], None]]:
    """On a terminal's stderr a bar of the shards with the time left, else a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns: list[Any] = [TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("shards", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """A line with the shards that are done and the time left, at most every LINE_EVERY_S, and at the end."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # time, and shards that were done then
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
        print_note(f"{time.strftime('%H:%M:%S')} shard {done}/{total}{ends}")
