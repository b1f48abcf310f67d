"""Signals that end a command as an error does, through its `finally` blocks: what it has not finished is removed.

Contract: entered in the main thread. Of SIGKILL no process hears.
"""

import signal
from collections.abc import Iterator
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
