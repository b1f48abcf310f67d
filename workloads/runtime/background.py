"""A thread that works beside its caller for as long as a context lasts. Does not depend on what it does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def in_background(work: Callable[[threading.Event], None], *, name: str, wait_s: float | None = None) -> Iterator[None]:
    """Run `work(ended)` in a thread of this name; the context's end sets `ended` and waits until `work` returns, or for
    `wait_s` seconds.

    A daemon thread: a process that is killed, or exits without leaving the context, does not wait for it.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(wait_s)
