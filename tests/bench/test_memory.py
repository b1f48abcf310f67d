"""How much memory a run takes, all of its processes together. Linux only.

Run with `make bench` or `pytest -m bench -s tests/bench/test_memory.py`; nothing is asserted. Memory that several
processes share is counted in parts (PSS). Of libraries that other programs of the machine use too, as a test suite
beside it, a part is not counted: the sum of resident sizes, which counts it for each process, is the upper bound.
"""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
EVERY_S = 0.5
SHOWN = 6  # processes


def name_of(process: psutil.Process) -> str:
    words = process.cmdline()
    return " ".join(word.rsplit("/", 1)[-1] for word in words[:4]) or process.name()


class Sizes(NamedTuple):
    """Of a process, in bytes."""

    pss: int
    rss: int


def memory_of(root: psutil.Process) -> dict[str, Sizes]:
    """The sizes of `root` and of each process below it."""
    found: dict[str, Sizes] = {}
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            info = process.memory_full_info()
            found[f"{name_of(process)} ({process.pid})"] = Sizes(info.pss, info.rss)
    return found


def total(sample: dict[str, Sizes]) -> int:
    return sum(each.pss for each in sample.values())


@pytest.mark.bench
@pytest.mark.parametrize("options", [(), ("--local",)], ids=["ray", "local"])
def test_peak_memory_of_the_demo(tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [ANTIPHON, "run", "demo", "--storage", str(tmp_path / "runs"), *options]
    peak: dict[str, Sizes] = {}
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as run:
        while run.poll() is None:
            with suppress(psutil.NoSuchProcess):
                now = memory_of(psutil.Process(run.pid))
                peak = max(peak, now, key=total)
            time.sleep(EVERY_S)
    assert run.returncode == 0, log.read_text()[-2000:]
    resident = sum(each.rss for each in peak.values())
    print(f"\nantiphon run demo {' '.join(options)}: {total(peak) / 2**30:.2f} GiB at its peak, resident sizes")
    print(f"{resident / 2**30:.2f} GiB in {len(peak)} processes, of which")
    for name, sizes in sorted(peak.items(), key=lambda item: -item[1].pss)[:SHOWN]:
        print(f"  {sizes.pss / 2**30:.2f} GiB  {name}")
