"""How a run's start and its plan of an epoch grow with the number of clips: `make bench`. Asserts one bound of memory.

Each size has a process of its own, so that its largest memory is its own. No sound is read.

Axes: N clips of a set.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.bench

TAGS = 527
SIZES = (1_000, 10_000, 100_000, 1_000_000, 2_000_000)
MOST_MB = 2048  # of planning, sampling and targets of two million clips

MEASURE = """
import json, resource, sys, time
from types import SimpleNamespace
from orchestrator.recipes.loader import load_recipe
from workloads.data.batches import Batches
from workloads.data.clips import split
from workloads.data.manifest import read_dataset
from workloads.runtime.opener import LocalFiles

def memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

settings = [f"data.manifest={sys.argv[1]}", "data.root=/nowhere", "data.format=manifest", "data.labels=multi"]
recipe = load_recipe("demo", [*settings, "compare=false", "data.sampling=balanced", "data.val_share=0.01"])
before, began = memory_mb(), time.perf_counter()
dataset = read_dataset(recipe.data, LocalFiles())
read = time.perf_counter()
splits = split(dataset, recipe.data)
fingerprint = dataset.fingerprint()
planned = time.perf_counter()
store = SimpleNamespace(rate=recipe.rate, without_clips=lambda: None)
batches = Batches(splits.train, dataset, store, recipe)
ids = batches.clip_ids(0)
first = time.perf_counter()
y_BC = dataset.targets([splits.train[row] for row in range(recipe.train.shard_size)])
clips = len(dataset.clips)
print(json.dumps([clips, read - began, planned - read, first - planned, memory_mb(), before]))
"""


def write_manifest(path: Path, clips: int) -> None:
    """Clips with AudioSet's two tags each, of recordings of their own."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    names = [f"/m/{number:05}" for number in range(TAGS)]
    tags = [[names[one], names[other]] for one, other in rng.integers(0, TAGS, (clips, 2)).tolist()]
    ids = [f"Y{number:010}" for number in range(clips)]
    paths = [f"{number % 50:02}/{name}.flac" for number, name in enumerate(ids)]
    columns = {"clip_id": ids, "path": paths, "tags": tags, "fold": [1 + (n % 100 > 0) for n in range(clips)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_two_million_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for size in SIZES:
        write_manifest(tmp_path / "clips.parquet", size)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, f"{tmp_path}/clips.parquet"], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    with capsys.disabled():
        print("\n  clips: s to read the manifest, to split and fingerprint, to the first batch (balanced); MB at most")
        for clips, *seconds, most, before in rows:
            times = "  ".join(f"{value:7.2f}" for value in seconds)
            print(f"  {clips:9,}: {times}  {most:6.0f} ({before:.0f} before)")
    assert rows[-1][4] < MOST_MB
