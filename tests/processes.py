"""Commands that a test starts, and all that they have started, which end with it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil


def title(process: psutil.Process) -> str:
    """Its command line; "" of one that has just ended, or that nobody has waited for."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def killed_at_the_end(process: subprocess.Popen[Any]) -> Iterator[None]:
    """SIGKILL for the process and all that it has started, its replayer too, as the end of a container is."""
    children: list[psutil.Process] = []
    try:
        children += psutil.Process(process.pid).children(recursive=True)
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            children += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in children:
            if child.is_running():
                child.kill()
