"""Our training loop beside EfficientAT's: `make bench`; needs `ANTIPHON_OFFICIAL` as `test_official_loaders.py` does.

Their network, front end, data set and loss run as they are; the lines of their script that join them, which also log to
a service, are written anew here. Prints clips/s within one run, and asserts none: machines are shared.

Axes: B clips, M mel bands, F frames, C tags.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from orchestrator.recipes.loader import load_recipe
from tests import stores
from tests.bench.conftest import TAGS
from tests.bench.test_loading import SHARD
from workloads.data.augment import VIEW_VERSION
from workloads.run import Run
from workloads.train_step import train_step

pytestmark = pytest.mark.bench

ROUNDS, STEPS = 3, 3


def their_steps(root: Path, dataset: Any, monkeypatch: Any) -> Iterator[float]:
    """Steps of mn10 with stored logits and mel-mixup, as their script takes them."""
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.chdir(root)  # their modules read a table below it
    network = importlib.import_module("models.mn.model").get_model(num_classes=TAGS, width_mult=1.0).train()
    mel = importlib.import_module("models.preprocess").AugmentMelSTFT(freqm=0, timem=0).train()
    mixup = importlib.import_module("helpers.utils").mixup
    optimizer = torch.optim.Adam(network.parameters(), lr=8e-4, weight_decay=0.0)
    bce = torch.nn.BCEWithLogitsLoss(reduction="none")
    teacher = torch.sigmoid(torch.randn(len(dataset), TAGS, generator=torch.Generator().manual_seed(0)) - 3)
    while True:
        for x, _, y, index in DataLoader(dataset, batch_size=SHARD, shuffle=True, drop_last=True):
            mel_BMF = mel(x.reshape(-1, x.shape[2]))[:, None]
            order, weight = mixup(len(x), 0.3)
            weight_B1 = weight.reshape(-1, 1)
            mel_BMF = mel_BMF * weight.reshape(-1, 1, 1, 1) + mel_BMF[order] * (1 - weight.reshape(-1, 1, 1, 1))
            logits, _ = network(mel_BMF)
            label_loss = bce(logits, y * weight_B1 + y[order] * (1 - weight_B1)).mean()
            soft = teacher[index]
            kd_loss = bce(logits, soft).mean(1) * weight + bce(logits, soft[order]).mean(1) * (1 - weight)
            loss = 0.1 * label_loss + 0.9 * kd_loss.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield float(loss.detach())


def our_steps(paths: list[Path], folder: Path, start: Callable[..., Run]) -> Iterator[float]:
    """The shipped recipe on the same clips, with a store of as many logits."""
    rows = [f"{path.stem},{path.name},tag{number},{1 + (number >= 8)}" for number, path in enumerate(paths)]
    (folder / "clips.csv").write_text("\n".join(["clip_id,path,tags,fold", *rows]))
    views = {"version": VIEW_VERSION, "augment": {"view_seed": 0}, "clip_seconds": 10.0, "rate": 32_000, "count": 1}
    about = stores.about(tags=TAGS, views=1) | {"views": views}
    stores.fill(str(folder / "store"), about, [path.stem for path in paths], per_shard=64)
    settings = [f"data={{format='manifest', manifest='{folder}/clips.csv', root='{folder}', labels='multi'}}"]
    settings += ["data.clip_seconds=10.0", f"data.cache={folder}/cache", "data.val_share=0.1", "train.device=cpu"]
    settings += [f"edges.0.teacher=store:{folder}/store", f"train.shard_size={SHARD}", "train.threads=1"]
    run = start(load_recipe("efficientat-audioset", settings))
    sources = run.pool.enter_phase(run.phases[0])
    while True:
        train_step(run, run.phases[0], sources)
        run.step += 1
        yield 0.0


def seconds(steps: Iterator[float]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    return (time.perf_counter() - began) / STEPS


def test_training_mn10(efficientats_clips, official, tmp_path, start, monkeypatch, capsys):
    """Clips that both have decoded before, as far as they keep decoded ones: theirs are MP3s."""
    torch.set_num_threads(1)
    np.random.seed(0)
    paths, dataset = efficientats_clips(add_index=True, roll=False, wavmix=False, gain_augment=0)
    ways = {
        "theirs": their_steps(official / "EfficientAT", dataset, monkeypatch),
        "ours": our_steps(paths, tmp_path, start),
    }
    for steps in ways.values():
        next(steps)
    rounds = [{name: seconds(steps) for name, steps in ways.items()} for _ in range(ROUNDS)]
    ratio = statistics.median(each["theirs"] / each["ours"] for each in rounds)
    speeds = {name: SHARD / statistics.median(each[name] for each in rounds) for name in ways}
    with capsys.disabled():
        print(f"\nmn10 on clips of 10 s, batches of {SHARD}, one thread, stored logits, no loader processes")
        print(f"  ours {speeds['ours']:.2f}, EfficientAT's {speeds['theirs']:.2f} clips/s, ratio {ratio:.2f}")
