"""Seconds of training until a score is reached: our loop beside EfficientAT's, on real audio: `make bench`.

Needs `ANTIPHON_OFFICIAL`, a folder with a checkout called EfficientAT, and ESC-10 (fixture `esc10`); skipped without.
In both loops mn04 learns folds 2 to 5 from the same random weights, by the settings of `efficientat-esc50` but for
those that a network without pretraining needs (`LEARNING_RATE`, constant, and `BN_MOMENTUM`). Of EfficientAT the data
set, front end, network and mixup run as they are; the lines of their script that join them, which also log and save,
are written anew here. Two options of theirs that our recipe does not have are off: mixed waveforms, and edges of the
filterbank that are drawn. Both read the same WAV files at 32 kHz, as EfficientAT keeps them, on one thread without
loader processes. Both keep the memory of freed tensors; with MALLOC_PERTURB_=0 neither does.

Seeds, scores and stopping rule were fixed before the first whole run. Asserts what makes the two comparable, and no
time: machines are shared.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

import contextlib
import csv
import importlib
import io
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from orchestrator.recipes.loader import load_recipe
from tests.bench.conftest import load_module
from tests.bench.steps_beside import steps_of
from tests.bench.time_to_score import (
    Loop,
    Rule,
    ScoredClips,
    logits_of,
    report_ratios,
    report_seed,
    seeded_loop,
    train_side_by_side,
)
from workloads.data.decode import cut_or_pad, load_sound
from workloads.models.official.efficientat import convert
from workloads.run import Run
from workloads.runtime.cpu import use_cpu

pytestmark = pytest.mark.bench

SEEDS = (0, 1, 2)
RULE = Rule(scores=(0.5, 0.6, 0.7), turn=5, budget=150)
LEARNED = 0.3  # accuracy at the end at least; chance is 0.1

SHARD, WIDTH, LEARNING_RATE, BN_MOMENTUM = 32, 0.4, 1e-3, 0.1
RATE, CLIP_SECONDS, GAIN_DB, MIXUP_ALPHA = 32_000, 5, 12, 0.3  # of EfficientAT's script for ESC-50


class EfficientAT(nn.Module):
    """EfficientAT's network and front end, as its script builds them."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the network
            self.network = importlib.import_module("models.mn.model").get_model(num_classes=tags, width_mult=WIDTH)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BN_MOMENTUM
        # The middle of what it draws the edges from; a range of 1 draws none.
        edges = {"fmin": 0.0, "fmax": 15_000, "fmin_aug_range": 1, "fmax_aug_range": 1}
        self.mel = importlib.import_module("models.preprocess").AugmentMelSTFT(freqm=0, timem=0, **edges)

    def log_mel(self, x_BT: Tensor) -> Tensor:
        return self.mel(x_BT)[:, None]

    def tag(self, x_BT: Tensor) -> Tensor:
        return self.network(self.log_mel(x_BT))[0]


def efficientats_steps(tagger: EfficientAT, dataset: Any) -> Iterator[float]:
    """Steps as the script takes them; yields the loss."""
    mixup, cross_entropy = importlib.import_module("helpers.utils").mixup, nn.functional.cross_entropy
    optimizer = torch.optim.Adam(tagger.network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    while True:
        for x_B1T, _, y_BC in DataLoader(dataset, batch_size=SHARD, shuffle=True, drop_last=True):
            mel_B1MF = tagger.log_mel(x_B1T.reshape(-1, x_B1T.shape[2]))
            order_B, weight_B = mixup(len(x_B1T), MIXUP_ALPHA)
            weight_B111 = weight_B.reshape(-1, 1, 1, 1)
            logits_BC, _ = tagger.network(mel_B1MF * weight_B111 + mel_B1MF[order_B] * (1.0 - weight_B111))
            own_B = cross_entropy(logits_BC, y_BC, reduction="none")
            partner_B = cross_entropy(logits_BC, y_BC[order_B], reduction="none")
            loss = (own_B * weight_B + partner_B * (1.0 - weight_B)).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield float(loss.detach())


@pytest.fixture
def efficientats_clips(project: Any, monkeypatch: Any) -> Callable[..., Any]:
    """EfficientAT's data set of the clips below a root that are named, rolled and amplified.

    This stack lacks librosa and numpy's `random_integers`; librosa reads a WAV file at its own rate as soundfile does.
    """

    def load(path: str, *, sr: int, mono: bool) -> tuple[Any, int]:
        x_T, rate = soundfile.read(path, dtype="float32")
        assert (rate, x_T.ndim, mono) == (sr, 1, True)
        return x_T, rate

    librosa = types.ModuleType("librosa")
    librosa.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "librosa", librosa)
    monkeypatch.setattr(np.random, "random_integers", lambda low, high: np.random.randint(low, high + 1), raising=False)
    path = project("EfficientAT") / "datasets" / "esc50.py"

    def dataset(root: Path, tags: int, names: Sequence[str]) -> Any:
        folder = ("dataset_dir = None", f"dataset_dir = {str(root)!r}")
        module = load_module("efficientats_esc50", path, folder=folder)
        helpers = importlib.import_module("datasets.helpers.audiodatasets")
        files = {"meta_csv": f"{root}/meta/esc50.csv", "audiopath": f"{root}/audio/"}
        with contextlib.redirect_stdout(io.StringIO()):
            clips = module.AudioSetDataset(**files, fold=1, train=True, classes_num=tags, gain_augment=GAIN_DB)
        clips.df = clips.df[clips.df.filename.isin(names)]  # our validation clips are left out
        return helpers.PreprocessDataset(clips, helpers.get_roll_func())

    return dataset


def write_clips(esc10: Path, root: Path) -> tuple[str, ...]:
    """Write ESC-10 as WAV files at 32 kHz, its targets the places of the tags; returns the tags, sorted."""
    with (esc10 / "meta" / "esc50.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    tags = sorted({row["category"] for row in rows})
    for folder in ("meta", "audio"):
        (root / folder).mkdir(parents=True)
    for row in rows:
        with (esc10 / "audio" / row["filename"]).open("rb") as sound:
            x_T = load_sound(sound, rate=RATE).x_T
        row |= {"filename": f"{Path(row['filename']).stem}.wav", "target": tags.index(row["category"])}
        soundfile.write(root / "audio" / row["filename"], x_T.numpy(), RATE)
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tuple(tags)


def clips_of_fold_1(root: Path) -> ScoredClips:
    """The first 5 s of each test clip, and the place of its tag."""
    with (root / "meta" / "esc50.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] == "1"]
    sounds = [torch.from_numpy(soundfile.read(root / "audio" / row["filename"], dtype="float32")[0]) for row in rows]
    x_BT = torch.stack([cut_or_pad(x_T, RATE * CLIP_SECONDS) for x_T in sounds])
    return ScoredClips(x_BT, torch.tensor([int(row["target"]) for row in rows]))


def our_run(start: Callable[..., Run], root: Path, weights: Path, seed: int) -> Run:
    """A run of `efficientat-esc50` on the same clips, from these weights."""
    settings = [f"data.root={root}", f"data.cache={root}/cache", "train.device=cpu", f"train.shard_size={SHARD}"]
    settings += ["train.threads=1", f"train.seed={seed}", f"augment.view_seed={seed}", f"schedule.steps={RULE.budget}"]
    model = [f"arch.width={WIDTH}", f"arch.bn_momentum={BN_MOMENTUM}", f"init={weights}"]
    model += [f"optimizer.lr={LEARNING_RATE}", "optimizer.warmup=0.0", "optimizer.decay=constant"]
    return start(load_recipe("efficientat-esc50", settings + [f"models.mn.{setting}" for setting in model]))


def both_loops(
    start: Callable[..., Run], root: Path, tags: tuple[str, ...], dataset_of: Callable[..., Any], seed: int
) -> Any:
    """The networks and steps of both, with the same weights and training clips, and the CPU seconds of their set-up."""
    torch.manual_seed(seed)
    began = time.process_time()
    theirs = EfficientAT(len(tags)).train()
    built = time.process_time()
    weights = root / f"weights{seed}.safetensors"
    save_file(convert(theirs.network.state_dict()).weights, weights)
    run = our_run(start, root, weights, seed)
    ours = run.pool.train_state("mn").tagger
    ready = time.process_time()
    names = [f"{clip.clip_id}.wav" for clip in run.prepared.splits.train]
    dataset = dataset_of(root, len(tags), names)
    set_up_s = {"ours": ready - built, "theirs": built - began + time.process_time() - ready}
    assert ours.num_parameters == sum(parameter.numel() for parameter in theirs.network.parameters())
    assert ours.tags == tags  # the targets of both
    assert len(dataset) == len(names)
    assert len(run.batches.clip_ids(0)) == SHARD
    assert run.batches.steps_per_epoch == len(dataset) // SHARD
    return {"ours": (ours, steps_of(run)), "theirs": (theirs, efficientats_steps(theirs, dataset))}, set_up_s


def test_mn04_beside_efficientat(esc10, efficientats_clips, tmp_path, start, capsys):
    use_cpu(1)
    root = tmp_path / "esc10"
    tags, clips = write_clips(esc10, root), clips_of_fold_1(root)
    seeds: dict[int, dict[str, Loop]] = {}
    for seed in SEEDS:
        parts, set_up_s = both_loops(start, root, tags, efficientats_clips, seed)
        first, second = (logits_of(tagger, clips.x_BT) for tagger, _ in parts.values())
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)  # before any step: same front end, same weights
        order = ("ours", "theirs") if seed % 2 == 0 else ("theirs", "ours")
        seeds[seed] = {name: seeded_loop(*parts[name], seed) for name in order}
        train_side_by_side(seeds[seed], RULE, clips)
        with capsys.disabled():
            report_seed(seed, seeds[seed], RULE)
            print(f"  CPU s before the first step, with seed {SEEDS[0]} to decode all clips for ours: {set_up_s}")
    with capsys.disabled():
        report_ratios(list(seeds.values()), RULE)
    for loops in seeds.values():
        assert all(loop.points[-1].accuracy >= LEARNED for loop in loops.values())
