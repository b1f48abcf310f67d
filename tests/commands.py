"""The command line as tests call it, and the replayers they start; a plugin: `pytest_plugins` in tests/conftest.py."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from orchestrator.cli import app, options
from orchestrator.tracking.replayer import Replayer
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.tagger import Tagger
from workloads.runtime.opener import LocalFiles
from workloads.train import Run


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def antiphon(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process; a process of its own for every mistake would take seconds."""

    def call(*arguments: Any) -> Done:
        monkeypatch.setattr(sys, "argv", ["antiphon", *map(str, arguments)])
        monkeypatch.setattr(options, "emitted", [])
        monkeypatch.setattr(app, "emitted", options.emitted)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            app.main()
        out, err = capfd.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return call


@pytest.fixture
def replayers() -> Iterator[list[Replayer]]:
    """Those started by the test, which end with it."""
    started: list[Replayer] = []
    yield started
    for replayer in started:
        replayer.process.kill()
        replayer.process.wait()


def first_tagger(run: Run, name: str) -> Tagger:
    """A model of the run as its first step finds it."""
    return build_initial_tagger(run.recipe, name, tags=run.prepared.dataset.tags, files=LocalFiles())
