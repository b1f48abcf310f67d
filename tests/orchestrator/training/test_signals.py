"""What a closed terminal asks of commands that save first; SIGTERM and Ctrl-C are tested with them."""

import signal

import pytest

from orchestrator.training.signals import Interrupts, StopSignals


@pytest.mark.usefixtures("not_under_nohup")
def test_a_closed_terminal_requests_that_a_run_saves_and_stops() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested()
        signal.raise_signal(signal.SIGHUP)  # the shell sends it too
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.usefixtures("not_under_nohup")
def test_a_closed_terminal_interrupts_a_search() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


@pytest.mark.usefixtures("not_under_nohup")
def test_under_nohup_nothing_is_requested() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        stop.install()  # as after Ray has set its own handlers
        signal.raise_signal(signal.SIGHUP)
        assert not stop.requested()
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        interrupts.check()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
