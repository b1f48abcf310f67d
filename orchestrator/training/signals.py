"""What SIGTERM and Ctrl-C mean to a driver while a run or a search is in progress."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

STOPPING = b"\nstopping: a checkpoint is saved first; Ctrl-C again stops at once\n"


class StopSignals:
    """SIGTERM and Ctrl-C as a request to save and stop, while the context lasts.

    Entered by a driver in its main thread, where Python delivers signals; the handler only sets a flag. A second Ctrl-C
    raises KeyboardInterrupt: what is committed stays, and the run can be resumed.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        return self._requested.is_set()

    @contextmanager
    def relayed(self, action: Callable[[], Any]) -> Iterator[None]:
        """Call `action` once, in a thread, if a stop is requested while the context lasts."""
        ended = threading.Event()

        def relay() -> None:
            while not ended.is_set():
                if self._requested.wait(timeout=0.2):
                    action()
                    return

        thread = threading.Thread(target=relay, daemon=True, name="stop")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def install(self) -> None:
        """Handle the signals from now on; called again where a library, such as Ray, has set handlers of its own."""
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, self._handle)

    def _handle(self, which: int, _: FrameType | None) -> None:
        if self._requested.is_set() and which == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._requested.is_set():
            os.write(2, STOPPING)
        self._requested.set()

    def __enter__(self) -> Self:
        self._before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)


@contextmanager
def on_sigterm(action: Callable[[], Any]) -> Iterator[None]:
    """Call `action` in the main thread at every SIGTERM while the context lasts; then restore the handler before it.

    Enter it from the main thread only: Python delivers signals there.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
