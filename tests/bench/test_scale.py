"""How a run's start and its plan of an epoch grow with the number of clips, and the memory that a long recording takes:
`make bench`. Asserts one bound of memory.

Each size has a process of its own, so that its largest memory is its own. No sound is read from files.

Axes: N clips of a set.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.bench

TAGS = 527
SIZES = (1_000, 10_000, 100_000, 1_000_000, 2_000_000)
MOST_MB = 2048  # of planning, sampling and targets of two million clips

TAG_LONG = """
import json, sys, time
from pathlib import Path
import torch
from tests.bench.test_models import resident_mb
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate.sounds import hear_sound
from workloads.models.catalog import CATALOG
from workloads.models.tagger import build_tagger

torch.set_num_threads(1)
tags = tuple(f"{number:03}" for number in range(527))
model = Model(arch=CATALOG[sys.argv[1]].arch, front_end=FrontEnd(kind="kaldi128", frames=1024))
clips = {"labels": "multi", "clip_seconds": 10.0, "clip_rate": 16_000}
tagger = build_tagger(model, name="ast", seed=0, tags=tags, **clips).eval()
x_T = 0.1 * torch.randn(16_000 * 60 * int(sys.argv[2]))
before, began = resident_mb("VmRSS"), time.perf_counter()
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
hear_sound(tagger, x_T, "windows")
print(json.dumps([resident_mb("VmHWM") - before, x_T.nbytes / 1e6, time.perf_counter() - began]))
"""

MEASURE = """
import json, resource, sys, time
from types import SimpleNamespace
from orchestrator.recipes.loader import load_recipe
from workloads.data.batches import Batches
from workloads.data.splits import split
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


@pytest.mark.parametrize(("name", "minutes"), [("ast_tiny", 3), ("ast_tiny", 60), ("ast_base", 3)])
def test_a_long_recording_takes_the_memory_of_some_windows(name: str, minutes: int, capsys: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAG_LONG, name, str(minutes)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-1000:]
    most, sound, seconds = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(
            f"\n  {name}, {minutes} minutes: {most:.0f} MB beside network and sound ({sound:.0f} MB), {seconds:.0f} s"
        )


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
