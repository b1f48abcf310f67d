"""What a smaller row costs in score: `make bench`. Rows as they are, and students that are equal but for their stores.

All students of a run hear the same clips in the same order. Prints test scores, of students with two seeds, and asserts
none. Axes: N clips, C tags, F steps of the teacher.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.recipes.loader import load_teach_recipe
from orchestrator.storage.fsspec_files import FsspecFiles
from tests import stores
from workloads.data.manifest import read_dataset
from workloads.distill.frames import frames_on_grid
from workloads.evaluate.frames import FRAME_SECONDS, score_frames
from workloads.models.profiles import TimeGrid

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
SEEDS = (0, 1)

TEACH_FRAMES = """
[data]
format = "synthetic"
labels = "multi"
clip_seconds = 3.0
synthetic_clips = 400
[teach]
frames = true
threads = 1
[teachers.teacher]
uri = "run:frames-demo/teacher"
"""
OF_FRAMES = {  # what is kept of ten tags in each frame
    "float16": (),
    "uint8": ("teach.frames_dtype=uint8",),
    "uint8_top3": ("teach.frames_dtype=uint8", "teach.frames_k=3"),
}
OF_CLIPS = {"all": (), "top3": ("teach.k=3",)}  # of ten tags of each clip

pytestmark = pytest.mark.bench


def antiphon(*words: object) -> dict[str, Any]:
    done = subprocess.run([ANTIPHON, *map(str, words), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def score_of_rows(recipe: Path, uri: Path, folder: Path) -> float:
    """The frame mAP of what a store holds of the test clips; tags that it left out sound least."""
    data = load_teach_recipe(str(recipe)).data
    dataset = read_dataset(data, FsspecFiles())
    clips = [clip for clip in dataset.clips if clip.fold == data.test_fold]
    reader = stores.reader(str(uri), folder)
    rows = reader.read("frames", [clip.clip_id for clip in clips], 0)
    values_NCF = rows.values.astype(np.float32)
    if rows.tags is not None:
        kept, values_NCF = values_NCF, np.full((len(clips), len(dataset.tags), values_NCF.shape[2]), -99.0, np.float32)
        np.put_along_axis(values_NCF, rows.tags[:, :, None], kept, axis=1)
    order = [reader.store.description["tags"].index(tag) for tag in dataset.tags]
    in_time = reader.store.description["columns"]["frames"]["frames"]
    step = in_time["hop_seconds"]
    own = TimeGrid(in_time["first_seconds"] - step / 2, step, in_time["count"])
    of_score = TimeGrid(0.0, FRAME_SECONDS, round(data.clip_seconds / FRAME_SECONDS))
    frames = frames_on_grid(torch.from_numpy(values_NCF[:, order]).transpose(1, 2), own, of_score)
    return score_frames(list(frames), clips, dataset)["frame_mAP"]


def edge(uri: Path, student: str, **values: object) -> str:
    words = {"teacher": f"store:{uri}", "student": student, "column": "frames" if "carries" in values else "outputs"}
    return "{" + ", ".join(f"{key}={value!r}" for key, value in (words | values).items()) + "}"


def scores(recipe: str, edges: list[str], model: str, names: list[str], folder: Path, metric: str) -> list[list[float]]:
    """The test scores of one student for each name and of one without a teacher, for each seed."""
    models = ", ".join(f"{name}={model}" for name in [*names, "untaught"])
    found = []
    for seed in SEEDS:
        own = [f"models={{{models}}}", f"edges=[{', '.join(edges)}]", f"train.seed={seed}", "compare=false"]
        own += ["schedule={kind='mutual', burn_in=0, steps=200}", "train.threads=1"]
        words = [word for value in own for word in ("--set", value)]
        done = antiphon("run", recipe, "--local", "--tracking", "none", "--storage", folder / str(seed), *words)
        found.append([done["models"][name]["test"][metric] for name in [*names, "untaught"]])
    return found


def test_what_less_of_a_row_costs_in_score(tmp_path, capsys):
    (tmp_path / "frames.toml").write_text(TEACH_FRAMES)
    teach = ("--local", "--storage", tmp_path / "teachers")
    for name, settings in OF_FRAMES.items():
        words = [word for value in settings for word in ("--set", value)]
        antiphon("teach", tmp_path / "frames.toml", "--out", tmp_path / name, *teach, *words)
    for name, settings in OF_CLIPS.items():
        words = [word for value in (*settings, "augment={}", "teach.views=1") for word in ("--set", value)]
        antiphon("teach", "teach-demo", "--out", tmp_path / name, *teach, *words)
    frames = {"carries": "frames", "loss": "bce", "weight": 1.0, "view": "clean"}
    of_frames = scores(
        "frames-demo",
        [edge(tmp_path / name, name, **frames) for name in OF_FRAMES],
        "{arch={family='frame_mn', width=0.2, bn_momentum=0.1}, optimizer={lr=5e-3}}",
        list(OF_FRAMES),
        tmp_path / "of-frames",
        "frame_mAP",
    )
    of_clips = scores(
        "offline-demo",
        [edge(tmp_path / name, name, weight=0.9, view="clean") for name in OF_CLIPS],
        "{arch={family='mn', width=0.2, bn_momentum=0.1}, optimizer={lr=3e-3}}",
        list(OF_CLIPS),
        tmp_path / "of-clips",
        "mAP",
    )
    rows = {name: score_of_rows(tmp_path / "frames.toml", tmp_path / name, tmp_path) for name in OF_FRAMES}
    with capsys.disabled():
        for name, score in rows.items():
            print(f"\nframe mAP of the rows themselves, {name}: {score:.4f}", end="")
        for title, names, rows in (("frame mAP", OF_FRAMES, of_frames), ("mAP", OF_CLIPS, of_clips)):
            for name, values in zip([*names, "untaught"], zip(*rows, strict=True), strict=True):
                print(f"\n{title} of a student, {name}: {', '.join(f'{value:.3f}' for value in values)}", end="")
