"""How much memory a run takes, all of its processes together: the figure in docs/operations.md. Linux only.

Run with `make bench` or `pytest -m bench -s tests/bench/test_memory.py`; nothing is asserted.
"""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
EVERY_S = 0.5
SHOWN = 6  # processes


def name_of(process: psutil.Process) -> str:
    words = process.cmdline()
    return " ".join(word.rsplit("/", 1)[-1] for word in words[:4]) or process.name()


def memory_of(root: psutil.Process) -> dict[str, int]:
    """Bytes of each process below `root` and of itself; memory that several share is counted in parts (PSS)."""
    found: dict[str, int] = {}
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            found[f"{name_of(process)} ({process.pid})"] = process.memory_full_info().pss
    return found


@pytest.mark.bench
@pytest.mark.parametrize("options", [(), ("--local",)], ids=["ray", "local"])
def test_peak_memory_of_the_demo(tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [ANTIPHON, "run", "demo", "--storage", str(tmp_path / "runs"), *options]
    peak: dict[str, int] = {}
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as run:
        while run.poll() is None:
            with suppress(psutil.NoSuchProcess):
                now = memory_of(psutil.Process(run.pid))
                peak = max(peak, now, key=lambda sample: sum(sample.values()))
            time.sleep(EVERY_S)
    assert run.returncode == 0, log.read_text()[-2000:]
    print(f"\nantiphon run demo {' '.join(options)}: {sum(peak.values()) / 2**30:.2f} GiB at its peak, of which")
    for name, size in sorted(peak.items(), key=lambda item: -item[1])[:SHOWN]:
        print(f"  {size / 2**30:.2f} GiB  {name}")
