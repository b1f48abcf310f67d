"""What SIGTERM means while a run or a search goes on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_sigterm(ask: Callable[[], Any]) -> Iterator[None]:
    """Within this context SIGTERM asks the run to save and stop; afterwards it means what it meant before."""
    before = signal.signal(signal.SIGTERM, lambda *_: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
