"""What streams cost and what they lose: `make bench`. Asserts that all of a sound is heard; prints times and scores.

Axes: T samples, X frames of all clips, C tags.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from orchestrator.artifacts.evaluate import prepare_for
from orchestrator.recipes.loader import load_recipe
from workloads.data.batches import evaluation_batches
from workloads.evaluate.detect import MEDIAN_SECONDS, smooth
from workloads.evaluate.frames import FRAME_SECONDS, frame_labels
from workloads.evaluate.predict import load_tagger
from workloads.evaluate.sounds import hear_sound
from workloads.evaluate.stream import CarriedStream, TaggerStream, WindowStream, why_not_carried
from workloads.export.fold import fold_batch_norm
from workloads.models.catalog import CATALOG, CLASSES, SECONDS
from workloads.models.tagger import build_tagger

pytestmark = pytest.mark.bench

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
HEARD_S = 30.0
NAMES = ("lstm_p", "crnn", "tc_resnet", "att_rnn", "mhatt_rnn", "frame_mn06", "frame_mn10", "mn04", "ced_tiny")
HOPS = (0.2, 1.0)


def hear(stream: TaggerStream, x_T: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32], float]:
    """When each step ends, its probabilities, and the CPU seconds of all of them."""
    began = time.process_time()
    found = [steps for block_T in x_T.split(1_600) for steps in stream.push(block_T)]
    found.append(stream.finish())
    taken = time.process_time() - began
    return np.concatenate([steps.ends_P for steps in found]), np.concatenate([steps.p_PC for steps in found]), taken


@pytest.mark.parametrize("name", NAMES)
def test_what_a_second_of_sound_takes(name, capsys):
    model, torch_threads = CATALOG[name], torch.get_num_threads()
    rate = model.front_end.rate
    tags = tuple(map(str, range(CLASSES)))
    tagger = build_tagger(model, name="x", tags=tags, labels="multi", clip_seconds=SECONDS, clip_rate=rate, seed=0)
    tagger, x_T = fold_batch_norm(tagger.eval()), torch.zeros(round(HEARD_S * rate)).uniform_(-0.1, 0.1)
    torch.set_num_threads(1)
    for kind in (CarriedStream, WindowStream):
        for hop in HOPS if kind is CarriedStream else HOPS[1:]:
            if kind is CarriedStream and why_not_carried(tagger):
                continue
            stream = kind(tagger, hop=hop)
            ends_P, _, taken = hear(stream, x_T)
            assert ends_P[-1] == HEARD_S
            with capsys.disabled():
                what = f"{kind.__name__:14} hop {hop:g} s, known after {stream.latency:.2f} s"
                print(f"\n{name:11} {what}: {1000 * taken / HEARD_S:6.2f} ms of CPU time a second", end="")
    torch.set_num_threads(torch_threads)


def test_what_a_stream_loses_of_frames_demo(tmp_path, capsys):
    """The test clips one after the other as one sound: frame mAP, smoothed, of all its windows, and of streams."""
    command = [ANTIPHON, "run", "frames-demo", "--local", "--no-compare", "--tracking", "none", "--run-id", "one"]
    done = subprocess.run([*command, "--storage", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("teacher", "student"):
        with capsys.disabled():
            print_losses(tmp_path / "one" / "models" / name, tmp_path / "cache")


def print_losses(folder: Path, cache: Path) -> None:
    tagger, state = load_tagger(folder)
    prepared = prepare_for(tagger, state, load_recipe("frames-demo", [f"data.cache={cache}"]), str(folder))
    clips, columns = prepared.splits.test, prepared.dataset.columns
    sounds, labels = [], []
    for rows, shard in evaluation_batches(clips, prepared.dataset, prepared.cache, prepared.recipe.data, at_once=8):
        sounds += list(shard.x_BT.float())
        frames = round(tagger.clip_seconds / FRAME_SECONDS)
        labels += [frame_labels(clips[row], frames, columns) for row in rows]
    x_T, y_XC = torch.cat(sounds), np.concatenate(labels)

    def score(p_XC: NDArray[np.float32]) -> str:
        tags = [tag for tag in range(y_XC.shape[1]) if y_XC[:, tag].any()]
        return f"{np.mean([average_precision_score(y_XC[:, tag], p_XC[:, tag]) for tag in tags]):.3f}"

    print(f"\n{folder.name}, {len(x_T) / state['clip_rate']:.0f} s: as windows of a file", end=" ")
    frames_FC = hear_sound(tagger, x_T, state["long_clips"], frames=True).frames_FC
    print(score(smooth(frames_FC, MEDIAN_SECONDS)[: len(y_XC)]))
    middles_X = (np.arange(len(y_XC)) + 0.5) * FRAME_SECONDS
    for kind in (CarriedStream, WindowStream):
        for hop in HOPS:
            ends_P, p_PC, taken = hear(kind(tagger, hop=hop), x_T)
            step_X = np.searchsorted(ends_P, middles_X, side="right").clip(max=len(p_PC) - 1)
            took = f"{1000 * taken / ends_P[-1]:.1f} ms of CPU time a second"
            print(f"  {kind.__name__:14} hop {hop:g} s: {score(p_PC[step_X])}, {took}")
