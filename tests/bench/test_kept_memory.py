"""Training steps with memory that is kept, and as glibc has it: `make bench`. Asserts equal weights, no time.

Prints the median time of a step of a CNN on 32 clips of 10 s, one thread, in turns, and how large the process became.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from workloads.runtime.event_log import read_event_log

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
AS_IT_IS = {"MALLOC_PERTURB_": "0"}  # has no effect but that we leave glibc as it is
ROUNDS = 3
RECIPE = """
name = "large-steps"
data = {format = "synthetic", clip_seconds = 10.0, synthetic_clips = 300}
schedule = {kind = "mutual", burn_in = 0, steps = 8}
train = {shard_size = 32, eval_every = 8, checkpoint_every = 8, log_every = 1, threads = 1}

[models.cnn]
arch = {family = "mn", width = 0.4}
front_end = {kind = "efficientat128"}
"""
# Starts the command and prints how large it became.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(done.returncode)
"""


def trained(folder: Path, cache: Path, where: tuple[str, ...], variables: dict[str, str]) -> tuple[float, int, str]:
    """Seconds of a step (median), MB of the command's process at most, and the weights that were learned."""
    folder.mkdir()
    (folder / "large.toml").write_text(RECIPE)
    command = [ANTIPHON, "run", str(folder / "large.toml"), "--tracking", "none", "--storage", str(folder), *where]
    command += ["--run-id", "one", "--set", f"data.cache={cache}"]
    words = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    moments = [
        record["t"] / 1000 for record in read_event_log(folder / "one/events.jsonl") if record["kind"] == "metrics"
    ]
    outcome = json.loads((folder / "one/outcome.json").read_text())
    step_s = statistics.median(later - earlier for earlier, later in pairwise(moments))
    return step_s, int(done.stdout), outcome["models"]["cnn"]["weights_sha256"]


@pytest.mark.bench
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("where", [("--local",), ()], ids=["local", "ray"])
def test_large_steps_with_memory_that_is_kept(where: tuple[str, ...], tmp_path: Path, capsys) -> None:
    ways: dict[str, dict[str, str]] = {"kept": {}, "glibc": AS_IT_IS}
    rounds = [
        {
            way: trained(tmp_path / f"{way}{number}", tmp_path / "clips", where, variables)
            for way, variables in ways.items()
        }
        for number in range(ROUNDS)
    ]
    assert len({weights for each in rounds for *_, weights in each.values()}) == 1
    ratios = sorted(each["glibc"][0] / each["kept"][0] for each in rounds)
    with capsys.disabled():
        for way in ways:
            steps = sorted(each[way][0] for each in rounds)
            size = statistics.median(each[way][1] for each in rounds)
            print(f"\n{way}: {statistics.median(steps):.2f} s a step, {size:.0f} MB", end="")
        print(f"\n{' '.join(where)}: ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
