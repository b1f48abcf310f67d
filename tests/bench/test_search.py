"""Costs of a search in addition to training: `make bench`. Prints numbers and asserts none: machines are shared."""

import contextlib
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny_search import ANTIPHON, results, sets

PAIRS = 3
TRIALS = 4
PLAIN = ["search.scheduler=none", "search.rungs=1", f"search.trials={TRIALS}"]

pytestmark = pytest.mark.bench


def run_search(folder: Path, name: str, *more: str) -> dict[str, Any]:
    """One search of `search-demo`'s trials: its outcome, and the seconds of its trials."""
    where = ["--storage", str(folder / "runs"), "--search-id", name, "--no-finals"]
    command = [ANTIPHON, "search", "search-demo", *where, *sets(*PLAIN), *more, "--json"]
    with (folder / name).open("w") as out, subprocess.Popen(command, stdout=out, text=True) as process:
        replayer = replayer_seconds(process, folder / "runs" / name / "trials")
    assert process.returncode == 0
    trials = results(folder / "runs" / name).values()
    assert len(trials) == TRIALS
    return json.loads((folder / name).read_text()) | {
        "replayer": replayer,
        "wall": max(result["ended"] for result in trials) - min(result["began"] for result in trials),
        "inside": sum(result["loop_seconds"] for result in trials),
    }


def replayer_seconds(process: "subprocess.Popen[str]", trials: Path) -> tuple[float, float]:
    """CPU seconds of the replayer process: until the first trial started, and in all."""
    started = total = 0.0
    while process.poll() is None:
        try:
            (replayer,) = (
                one for one in psutil.Process(process.pid).children() if "orchestrator.tracking" in one.cmdline()
            )
            total = sum(replayer.cpu_times()[:2])
        except (ValueError, psutil.Error):  # the replayer has not started, or has ended
            pass
        if not trials.exists():
            started = total
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    return started, total


def test_slots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials an hour at one slot and at two, in turns, and what a trial costs in addition to its training."""
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for pair in range(PAIRS):
        for slots, several in runs.items():
            several.append(run_search(tmp_path, f"{slots}-{pair}", "--slots", str(slots), "--tracking", "none"))
    with capsys.disabled():
        print(f"\nmedians of {PAIRS} searches of {TRIALS} trials in turns")
        for slots, several in runs.items():
            hourly = statistics.median(3600 * TRIALS / run["wall"] for run in several)
            overhead = statistics.median(run["overhead_s_per_trial"] for run in several)
            inside = statistics.median(run["inside"] / TRIALS for run in several)
            print(f"  {slots} slots: {hourly:5.0f} trials an hour, {inside:.1f} s of training a trial", end="")
            print(f", {overhead:.1f} s beside it")
        ratios = [one["wall"] / two["wall"] for one, two in zip(runs[1], runs[2], strict=True)]
        assert all(run["completed"] == TRIALS for several in runs.values() for run in several), "else not comparable"
        print(f"  two slots against one: {statistics.median(ratios):.2f} times as many trials an hour")


def test_tracking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same trials on two slots with MLflow (SQLite) and without, in turns: wall time of all trials; and the CPU
    time of the replayer process, relative to the time that the trials take on their slots.
    """
    ratios, sending, total = [], [], []
    for pair in range(PAIRS):
        without = run_search(tmp_path, f"without-{pair}", "--slots", "2", "--tracking", "none")
        tracked = run_search(tmp_path, f"tracked-{pair}", "--slots", "2")
        ratios.append(tracked["wall"] / without["wall"])
        started, seconds = tracked["replayer"]
        assert seconds > started > 0
        sending.append((seconds - started) / tracked["inside"])
        total.append(seconds / tracked["inside"])
    with capsys.disabled():
        print(f"\na search with MLflow against one without: {statistics.median(ratios):.3f}", end="")
        print(f" (median of {PAIRS} pairs: {[round(ratio, 3) for ratio in ratios]})")
        print(f"  CPU time of the replayer, over the trials' training: {statistics.median(sending):.1%}", end="")
        print(f", with its start before the first trial {statistics.median(total):.1%}")
