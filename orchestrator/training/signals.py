"""What SIGTERM means to a driver while a run or a search is in progress."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
