"""Our data path beside the loaders of EfficientAT, AST and CED on the same clips: `make bench`.

Needs `ANTIPHON_OFFICIAL`, a folder with checkouts of these projects called EfficientAT, ast and CED; skipped without.
Their code runs as it is, but for what this stack no longer has: `torchaudio.load` (AST) reads by soundfile, and numpy's
`random_integers` (EfficientAT) is `randint`. Prints clips/s within one run, and asserts none: machines are shared.
"""

import csv
import importlib.util
import io
import json
import statistics
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from tests.bench.conftest import CLIPS, SECONDS, TAGS, load_module
from tests.bench.test_loading import CPU, ROUNDS, SHARD, STEPS, clips_per_second
from workloads.config.architectures import ViT
from workloads.config.data import Data
from workloads.config.recipe import Augment, FrontEnd, Model, Recipe, Train
from workloads.config.schedules import Mutual
from workloads.data.batches import Batches
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip, Dataset
from workloads.models.front_end import build_front_end
from workloads.runtime.opener import LocalFiles

pytestmark = pytest.mark.bench


def ours(paths: list[Path], rate: int, kind: str, augment: Augment, *, loaders: int, with_mels: bool) -> float:
    """Clips/s of our data path, up to waveforms or log-mels; every clip was decoded once before."""
    found = tuple(Clip(path.stem, path.name, ("ab"[n % 2],), 1, path.stem) for n, path in enumerate(paths))
    data = Data(format="manifest", root=str(paths[0].parent), manifest="unused.csv", clip_seconds=float(SECONDS))
    cache = ClipCache(paths[0].parent / "cache", rate=rate, limit_gb=5.0)
    cache.prepare(found, data, LocalFiles())
    recipe = Recipe(
        name="t",
        data=data,
        augment=augment,
        models={"m": Model(arch=ViT(family="vit"), front_end=FrontEnd(kind=kind))},
        schedule=Mutual(kind="mutual", burn_in=0, steps=1),
        train=Train(shard_size=SHARD, threads=1, loaders=loaders),
    )
    batches, front_end = (
        Batches(found, Dataset(found, ("a", "b"), "single"), cache, recipe),
        build_front_end(kind, clip_rate=rate),
    )
    with batches.loaded_ahead(range(STEPS), range(1), CPU):
        shards = (batches.shard(step, 0) for step in range(STEPS))
        return clips_per_second(shard.mel(front_end) if with_mels else shard for shard in shards)


def theirs(dataset: Any, *, workers: int, **options: Any) -> float:
    """Clips/s of a project's data set in torch's DataLoader, as the project uses it."""
    sampler = torch.randint(len(dataset), (STEPS * SHARD,), generator=torch.Generator().manual_seed(0)).tolist()
    return clips_per_second(
        iter(DataLoader(dataset, batch_size=SHARD, sampler=sampler, num_workers=workers, **options))
    )


def compare(title: str, capsys: pytest.CaptureFixture, ways: dict[str, Callable[[], float]]) -> None:
    """Measure all ways in turns; print medians, and the ratio of ours to theirs by number of processes."""
    rounds = [{name: measure() for name, measure in ways.items()} for _ in range(ROUNDS)]
    medians = {name: statistics.median(each[name] for each in rounds) for name in ways}
    with capsys.disabled():
        print(f"\n{title}, {CLIPS} clips of {SECONDS} s, medians of {ROUNDS}")
        for processes in (0, 2):
            mine, other = medians[f"ours, {processes}"], medians[f"theirs, {processes}"]
            print(f"  {processes} processes: {mine:6.0f} against {other:6.0f} clips/s, ratio {mine / other:.2f}")


def both(ours_with: Callable[[int], float], theirs_with: Callable[[int], float]) -> Iterator[tuple[str, Any]]:
    for processes in (0, 2):
        yield f"ours, {processes}", lambda processes=processes: ours_with(processes)
        yield f"theirs, {processes}", lambda processes=processes: theirs_with(processes)


def test_efficientat(efficientats_clips: Callable[..., Any], capsys: Any) -> None:
    """MP3s in HDF5 that are decoded whenever they are heard; roll, gain and mixup of waveforms."""
    paths, dataset = efficientats_clips(add_index=False, roll=True, wavmix=True, gain_augment=12)
    augment = Augment(roll=0.0125, gain_db=12.0, mixup=0.5, mixup_alpha=2.0)
    ways = both(
        lambda processes: ours(paths, 32_000, "efficientat128", augment, loaders=processes, with_mels=False),
        lambda processes: theirs(dataset, workers=processes),
    )
    compare("EfficientAT's AudioSet loader, waveforms at 32 kHz", capsys, dict(ways))


def test_ast(official: Path, clips: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """WAV files; filter banks, mixup and masks in the loader."""
    import torchaudio

    def load(path: str) -> tuple[torch.Tensor, int]:
        x_T, rate = soundfile.read(path, dtype="float32")
        return torch.from_numpy(x_T)[None], rate

    monkeypatch.setattr(torchaudio, "load", load, raising=False)
    paths = clips(16_000, "WAV")
    module = load_module("ast_dataloader", official / "ast" / "src" / "dataloader.py")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "mid", "display_name"), *((n, f"/m/{n}", f"t{n}") for n in range(TAGS))])
    listing = tmp_path / "data.json"
    listing.write_text(json.dumps({"data": [{"wav": str(path), "labels": f"/m/{n}"} for n, path in enumerate(paths)]}))
    settings = {"num_mel_bins": 128, "target_length": 1024, "freqm": 48, "timem": 192, "mixup": 0.5, "mode": "train"}
    settings |= {"dataset": "audioset", "mean": -4.27, "std": 4.57, "noise": False}
    with capsys.disabled(), io.StringIO() as quiet:
        monkeypatch.setattr(sys, "stdout", quiet)
        dataset = module.AudiosetDataset(str(listing), settings, str(tmp_path / "labels.csv"))
        monkeypatch.undo()
    monkeypatch.setattr(torchaudio, "load", load, raising=False)
    augment = Augment(mixup=0.5, mixup_alpha=10.0, mask_time=192 / 1024, mask_mel=48 / 128)
    ways = both(
        lambda processes: ours(paths, 16_000, "kaldi128", augment, loaders=processes, with_mels=True),
        lambda processes: theirs(dataset, workers=processes),
    )
    compare("AST's loader, filter banks at 16 kHz", capsys, dict(ways))


def test_ced(official: Path, clips: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Waveforms of 16 bits in HDF5; labels in a table, no augmentation."""
    h5py, pandas = pytest.importorskip("h5py"), pytest.importorskip("pandas")
    for name in ("loguru", "utils"):  # what its loaders of clips do not use
        if importlib.util.find_spec(name) is None:
            stand_in = types.ModuleType(name)
            stand_in.logger = None  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, stand_in)
    paths = clips(16_000, "WAV")
    module = load_module("ced_dataset", official / "CED" / "dataset.py")
    with h5py.File(tmp_path / "clips.h5", "w") as file:
        for path in paths:
            file[path.name] = soundfile.read(path, dtype="int16")[0]
    rows = [(path.name, [number], str(tmp_path / "clips.h5")) for number, path in enumerate(paths)]
    table = pandas.DataFrame(rows, columns=["filename", "labels", "hdf5path"])
    dataset = module.WeakHDF5Dataset(table, TAGS)
    ways = both(
        lambda processes: ours(paths, 16_000, "ced64", Augment(), loaders=processes, with_mels=False),
        lambda processes: theirs(dataset, workers=processes, collate_fn=module.sequential_pad),
    )
    compare("CED's loader, waveforms at 16 kHz", capsys, dict(ways))
