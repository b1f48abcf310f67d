"""What tells a process from every other one: the boot of its host, the namespace of its pid, when it started.

On Linux from `/proc`. Elsewhere (macOS) from psutil, and there a start is the wall-clock time that the kernel has noted
when the process began: no two boots share one, so none is told from another, and there are no namespaces of pids.
"""

import os
import sys
import time
from pathlib import Path

import psutil


def boot_id() -> str:
    """The number that Linux draws at boot; empty elsewhere."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() if sys.platform == "linux" else ""


def pid_namespace() -> str:
    """The namespace of this process's pid, which differs between a host's containers; empty but on Linux."""
    return os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""


def started(pid: int) -> float:
    """When a process started, in seconds: on Linux since the boot, which unlike wall-clock time cannot jump.

    Elsewhere since the epoch. psutil would move that with the clock of the boot, but not within a second, and only by
    what the clock was set since psutil was imported: a process that is asked about right after its start has the
    kernel's own number. Raises ProcessLookupError or psutil.NoSuchProcess where there is no such process.
    """
    if sys.platform == "linux":
        try:  # a process that ends while its file is read is a ProcessLookupError already
            said = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            raise ProcessLookupError(f"there is no process {pid}") from None
        return int(said.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(psutil.Process(pid).create_time())


def seconds_running() -> float:
    """How long this process has run."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started(os.getpid())
    return time.time() - started(os.getpid())
