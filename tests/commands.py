"""The command line as tests call it, and the replayers they start; a plugin: `pytest_plugins` in tests/conftest.py."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from orchestrator import cli, options
from orchestrator.tracking import Replayer


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
        monkeypatch.setattr(cli, "emitted", options.emitted)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
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
