"""What SIGTERM, Ctrl-C and a closed terminal mean to a command while a run, a search or a stream is in progress."""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from workloads.runtime.background import in_background

STOPPING = b"\nstopping: a checkpoint is saved first; Ctrl-C again stops at once\n"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last where a terminal is closed


class _Handlers(ABC):
    """Handles SIGNALS while the context lasts; entered in the main thread, where Python delivers signals.

    SIGHUP stays ignored where it is: under `nohup` a command outlives its terminal.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on; called again where a library, such as Ray, has set handlers of its own."""
        for which in self._before:
            signal.signal(which, self._handle)

    @abstractmethod
    def _handle(self, which: int, _: FrameType | None) -> None:
        """Called in the main thread at every one of the signals."""

    def __enter__(self) -> Self:
        before = {which: signal.getsignal(which) for which in SIGNALS}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            del before[signal.SIGHUP]
        self._before = before
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)


class StopSignals(_Handlers):
    """For runs and streams: a signal is a request to save and stop; its handler only sets a flag and says so.

    A second Ctrl-C raises KeyboardInterrupt: what is committed stays, and a run can be resumed. Within another such
    context, as a run of a study is, a request holds for both: what came before is requested here from the beginning,
    and what comes here is requested there when this one ends.
    """

    _first_at = 0.0

    def __init__(self, message: bytes = STOPPING) -> None:
        super().__init__()
        self._message = message

    def __enter__(self) -> Self:
        super().__enter__()
        for outer in self._outer():
            self._inherit(outer)
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        for outer in self._outer():
            outer._inherit(self)

    def _outer(self) -> Iterator["StopSignals"]:
        """The context whose handlers were there before these, if any."""
        handler = getattr(self._before.get(signal.SIGTERM), "__self__", None)
        if isinstance(handler, StopSignals):
            yield handler

    def _inherit(self, other: "StopSignals") -> None:
        if other.requested() and not self.requested():
            self._first_at = other._first_at
            self._requested.set()

    def requested(self) -> bool:
        return self._requested.is_set()

    def requested_for(self) -> float:
        """Seconds since the first signal; 0 where there was none."""
        return time.monotonic() - self._first_at if self._requested.is_set() else 0.0

    @contextmanager
    def relayed(self, action: Callable[[], Any]) -> Iterator[None]:
        """Call `action` once, in a thread, if a stop is requested while the context lasts."""

        def relay(ended: threading.Event) -> None:
            while not ended.is_set():
                if self._requested.wait(timeout=0.2):
                    action()
                    return

        with in_background(relay, name="stop", wait_s=0.0):  # a store that does not answer must not keep the end
            yield

    def _handle(self, which: int, _: FrameType | None) -> None:
        if self._requested.is_set() and which == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._requested.is_set():
            self._first_at = time.monotonic()
            with suppress(OSError):  # of a terminal that is closed
                os.write(2, self._message)
        self._requested.set()


class Interrupts(_Handlers):
    """For searches: a signal raises KeyboardInterrupt in the main thread; what is committed stays.

    It is remembered too, because an exception that is raised within a library's callback may be swallowed there (Ray's
    start does so): `check` raises it again.
    """

    def check(self) -> None:
        if self._requested.is_set():
            raise KeyboardInterrupt

    def _handle(self, which: int, _: FrameType | None) -> None:
        self._requested.set()
        raise KeyboardInterrupt
