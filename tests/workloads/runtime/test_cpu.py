"""Freed memory is kept for the next tensors: they cause no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from workloads.runtime.cpu import memory_variables

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

# Prints how many pages a tensor of 64 MB newly takes, after others of the same size were freed: glibc 2.36 takes a few
# new ones first, since a tensor's memory is aligned and it looks for a little more than that.
PROGRAM = """
import resource, threading, torch
from workloads.runtime.cpu import use_cpu

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

def allocate():
    for _ in range(32):
        torch.ones(2**24)
    before = faults()
    torch.ones(2**24)
    print(faults() - before)

torch.set_num_threads(1)  # of another thread no faults are counted
KEEP and use_cpu(1)
thread = threading.Thread(target=allocate)
thread.start() if IN_THREAD else allocate()
"""
PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE")


def new_pages(*, keep: bool, in_thread: bool = False, **variables: str) -> int:
    program = PROGRAM.replace("KEEP", str(keep)).replace("IN_THREAD", str(in_thread))
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def test_the_main_thread_gets_memory_that_it_freed() -> None:
    assert new_pages(keep=False) >= PAGES
    assert new_pages(keep=True) < PAGES // 100


def test_any_thread_does_in_a_process_with_the_variables() -> None:
    assert new_pages(keep=False, in_thread=True) >= PAGES
    assert new_pages(keep=False, in_thread=True, **memory_variables()) < PAGES // 100


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_pages(keep=True, MALLOC_MMAP_THRESHOLD_="1000000") >= PAGES
    assert new_pages(keep=True, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000") >= PAGES
    assert new_pages(keep=True, GLIBC_TUNABLES="glibc.pthread.rseq=0") < PAGES // 100
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert memory_variables() == {}
