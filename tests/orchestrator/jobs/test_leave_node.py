"""`antiphon cluster leave`: which processes of a node are asked to end, and what it says of those that do not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from orchestrator.jobs.leave_node import _is_driver, leave_node


@pytest.mark.parametrize(
    ("words", "is_driver"),
    [
        (["python", "-m", "orchestrator.cli.app", "run", "recipe.json"], True),
        (["/x/python", "/x/bin/antiphon", "search", "search-demo"], True),
        (["/x/bin/antiphon", "teach", "r.toml"], True),
        (["python", "-m", "orchestrator.cli.app", "study", "recipe.json"], True),
        (["/x/bin/antiphon", "cluster", "leave"], False),
        (["/x/bin/antiphon", "logs", "-f", "run"], False),
        (["vim", "antiphon"], False),
        (["ray::RayTrainWorker"], False),
        ([], False),
    ],
)
def test_drivers_are_told_by_their_commands(words: list[str], is_driver: bool) -> None:
    assert _is_driver(words) is is_driver


@contextmanager
def driver(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like a driver; it prints a line once it has begun."""
    words = [sys.executable, "-c", program, "orchestrator.cli.app", "run"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def alone(process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were the only driver of its machine: other tests may have some."""
    only = [psutil.Process(process.pid)]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(only))


def test_a_driver_that_ends_at_sigterm_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); print('begun', flush=True); "
        "signal.sigwait([15]); print('saved')"
    )
    said: list[str] = []
    with driver(program) as process:
        alone(process, monkeypatch)
        assert leave_node(seconds=60, say=said.append)
        assert process.stdout is not None
        assert process.stdout.read() == "saved\n"
        assert process.wait() == 0, "it was left to its parent"
    assert said == [f"process {process.pid} is asked to save and stop"]


def test_one_that_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import signal; signal.signal(15, lambda *_: None); print('begun', flush=True)\nwhile True: signal.pause()"
    )
    said: list[str] = []
    with driver(program) as process:
        alone(process, monkeypatch)
        assert not leave_node(seconds=0.5, say=said.append)
        process.send_signal(signal.SIGKILL)
    assert said[-1] == f"process {process.pid} has not ended within 0.5 s"
