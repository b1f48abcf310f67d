"""The command line in a test's process, replayers that a test starts, what tests read of a run.

A pytest plugin (`pytest_plugins` in tests/conftest.py).
"""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from orchestrator.cli import app, options
from orchestrator.tracking.replayer import Replayer
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.tagger import Tagger
from workloads.run import Run
from workloads.runtime.event_log import read_event_log
from workloads.runtime.opener import LocalFiles


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def antiphon(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call the command line in this process: a new process for every call would take seconds."""

    def call(*arguments: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["antiphon", *map(str, arguments)])
        monkeypatch.setattr(options, "emitted", [])
        monkeypatch.setattr(app, "emitted", options.emitted)
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            app.main()
        out, err = capfd.readouterr()
        return Done(int(exited.value.code or 0), out, err)

    return call


@pytest.fixture
def replayers() -> Iterator[list[Replayer]]:
    """The test adds the replayers that it starts; they are killed when it ends."""
    started: list[Replayer] = []
    yield started
    for replayer in started:
        replayer.process.kill()
        replayer.process.wait()


def first_tagger(run: Run, name: str) -> Tagger:
    """A model of the run with its initial weights."""
    return build_initial_tagger(run.recipe, name, tags=run.prepared.dataset.tags, files=LocalFiles())


def event_records(run: Run) -> list[dict[str, Any]]:
    """The records that a run of the `start` fixture has reported."""
    return read_event_log(run.session.work_dir.parent / "events.jsonl")


@pytest.fixture
def not_under_nohup() -> Iterator[None]:
    """SIGHUP ends the tests' process, also where they run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
