"""The table of injected faults and their effects; a plugin: `pytest_plugins` in tests/conftest.py."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from workloads.runtime.event_log import read_event_log

ROWS = pytest.StashKey[list[tuple[str, ...]]]()
COLUMNS = (
    "fault",
    "what the user sees",
    "seconds to detect",
    "seconds to recover",
    "steps or shards repeated",
    "equal at the end",
)


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Adds one row to the table that is printed at the end of the session; arguments left out become "-"."""
    rows = pytestconfig.stash.setdefault(ROWS, [])

    def add(
        *,
        fault: str,
        seen: str,
        detected: float | None = None,
        seconds: float | None = None,
        repeated: int | None = None,
        equal: bool | None = None,
    ) -> None:
        answers = {True: "yes, bit for bit", False: "no", None: "-"}
        times = ["-" if time is None else f"{time:.1f}" for time in (detected, seconds)]
        rows.append((fault, seen, *times, "-" if repeated is None else str(repeated), answers[equal]))
        print(rows[-1])  # seen with -s, also where the session does not come to its end

    return add


def recovery(event_log: Path) -> dict[str, float | int]:
    """A run's last interruption of its training: seconds from the last metrics before it to the first after it, and
    steps repeated."""
    records = [record for record in read_event_log(event_log) if record["kind"] in ("start", "metrics")]
    kinds = [record["kind"] for record in records]
    restart = max(number for number, pair in enumerate(pairwise(kinds)) if pair == ("start", "metrics"))
    start, next_step = records[restart], records[restart + 1]
    before = max(
        (record for record in records[:restart] if record["kind"] == "metrics"), key=lambda record: record["t"]
    )
    return {"seconds": (next_step["t"] - before["t"]) / 1000, "repeated": max(before["step"] - start["step"], 0)}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table as Markdown, for docs/operations.md."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("faults")
    for row in [COLUMNS, ("---",) * len(COLUMNS), *rows]:
        terminalreporter.write_line(f"| {' | '.join(row)} |")
