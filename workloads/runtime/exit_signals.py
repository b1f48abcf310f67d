"""Signals that end a command as an error does, through its `finally` blocks: what it has not finished is removed.

And signals that are for the command to handle, of which what it starts does not hear. Contract: `exit_on_signals` is
entered in the main thread. Of SIGKILL no process hears.
"""

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # of `kill`, `timeout` and job systems; of a terminal that is closed


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Each of SIGNALS raises SystemExit with the status that a shell gives a process that it ended.

    One that is ignored stays so: under `nohup` a command outlives its terminal.
    """

    def end(which: int, _: FrameType | None) -> None:
        raise SystemExit(128 + which)

    before = {which: signal.getsignal(which) for which in SIGNALS}
    heard = [which for which in SIGNALS if before[which] is not signal.SIG_IGN]
    for which in heard:
        signal.signal(which, end)
    try:
        yield
    finally:
        for which in heard:
            signal.signal(which, before[which])


@contextmanager
def blocked_signals(signals: Collection[signal.Signals]) -> Iterator[None]:
    """Processes that are started meanwhile never hear of these signals; this one does afterwards. In any thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
