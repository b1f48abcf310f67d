"""Our training loop beside those of EfficientAT, AST, CED and torchdistill: `make bench`.

Needs `ANTIPHON_OFFICIAL`, a folder with checkouts called EfficientAT, ast, CED and torchdistill, and on the Python path
what they import (einops, loguru, pytorch-ignite, fire, torch_audiomentations, wget, cython); skipped without. Networks,
front ends, data sets, losses and, of CED and torchdistill, steps run as they are. Of EfficientAT and AST the lines of
the script that join them, which also log and save, are written anew here. Prints clips/s within one run, and asserts
none: machines are shared.

Axes: B clips, M mel bands, F frames, C tags.
"""

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, RandomSampler

from tests.bench.conftest import CLIPS, TAGS, load_module
from tests.bench.steps_beside import compare_steps, our_steps, recipe_settings, store_of
from tests.bench.test_loading import SHARD
from tests.orchestrator.artifacts.test_tag import publish
from workloads.config.architectures import MN
from workloads.config.recipe import FrontEnd, Model
from workloads.models.tagger import build_tagger

pytestmark = pytest.mark.bench

AST_SHARD = 4  # 1214 tokens a clip


def efficientats_steps(dataset: Any) -> Iterator[float]:
    """Steps of mn10 with stored logits and mel-mixup, as their script takes them."""
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


def test_mn10_beside_efficientat(efficientats_clips, project, tmp_path, start, capsys):
    """Clips that both have decoded before, as far as they keep decoded ones: theirs are MP3s."""
    np.random.seed(0)
    paths, dataset = efficientats_clips(add_index=True, roll=False, wavmix=False, gain_augment=0)
    recipe, settings = "efficientat-audioset", recipe_settings(paths, tmp_path, SHARD)
    settings += store_of(paths, tmp_path, recipe, settings, rate=32_000)
    project("EfficientAT")
    ways = {"theirs": efficientats_steps(dataset), "ours": our_steps(start, recipe, settings)}
    compare_steps("mn10 taught by stored logits, mixed log-mels; EfficientAT", SHARD, ways, capsys)


def asts_dataset(root: Path, paths: list[Path], folder: Path, monkeypatch: Any) -> Any:
    """AST's data set of WAV files, with filter banks, mixup and masks; this stack lacks `torchaudio.load`."""
    import torchaudio

    def load(path: str) -> tuple[torch.Tensor, int]:
        x_T, rate = soundfile.read(path, dtype="float32")
        return torch.from_numpy(x_T)[None], rate

    monkeypatch.setattr(torchaudio, "load", load, raising=False)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "mid", "display_name"), *((n, f"/m/{n}", f"t{n}") for n in range(TAGS))])
    clips = [{"wav": str(path), "labels": f"/m/{number}"} for number, path in enumerate(paths)]
    (folder / "data.json").write_text(json.dumps({"data": clips}))
    settings = {"num_mel_bins": 128, "target_length": 1024, "freqm": 48, "timem": 192, "mixup": 0.5, "mode": "train"}
    settings |= {"dataset": "audioset", "mean": -4.27, "std": 4.57, "noise": False}
    module = load_module("ast_dataloader", root / "src" / "dataloader.py")
    return module.AudiosetDataset(str(folder / "data.json"), settings, str(folder / "labels.csv"))


def asts_steps(root: Path, dataset: Any) -> Iterator[float]:
    """Steps of AST-tiny as their script takes them on a CPU, where its half precision is off; by today's timm."""
    changed = {
        "version": ("timm.__version__ == '0.4.5'", "timm.__version__"),
        "network": (
            "'vit_deit_tiny_distilled_patch16_224', pretrained=imagenet_pretrain",
            "'deit_tiny_distilled_patch16_224', img_size=(128, 1024)",
        ),
    }
    module = load_module("ast_models", root / "src" / "models" / "ast_models.py", **changed)
    network = module.ASTModel(TAGS, imagenet_pretrain=False, model_size="tiny224", verbose=False).train()
    optimizer = torch.optim.Adam(network.parameters(), 5e-5, weight_decay=5e-7, betas=(0.95, 0.999))
    loss_fn = torch.nn.BCEWithLogitsLoss()
    while True:
        for mel_BFM, y_BC in DataLoader(dataset, batch_size=AST_SHARD, shuffle=True, drop_last=True):
            loss = loss_fn(network(mel_BFM), y_BC)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield float(loss.detach())


def test_ast_tiny_beside_ast(clips, project, tmp_path, start, monkeypatch, capsys):
    paths, root = clips(16_000, "WAV"), project("ast")
    dataset = asts_dataset(root, paths, tmp_path, monkeypatch)
    settings = [*recipe_settings(paths, tmp_path, AST_SHARD), 'models.ast.arch={family="ast", size="tiny"}']
    ways = {"theirs": asts_steps(root, dataset), "ours": our_steps(start, "ast-audioset-balanced", settings)}
    compare_steps("AST-tiny from labels; AST", AST_SHARD, ways, capsys)


def ceds_dataset(paths: list[Path], folder: Path, monkeypatch: Any) -> Any:
    """CED's data set: waveforms of 16 bits and logits, the largest 20, in HDF5; a shift of the waveform as its view."""
    h5py, pandas = pytest.importorskip("h5py"), pytest.importorskip("pandas")
    rng, logits = np.random.default_rng(0), folder / "logits"
    logits.mkdir()
    with h5py.File(folder / "clips.h5", "w") as file:
        for path in paths:
            file[path.name] = soundfile.read(path, dtype="int16")[0]
    with h5py.File(logits / "ep1_0.h5", "w") as file:
        file["topk_indexes"] = np.stack([rng.choice(TAGS, 20, replace=False) for _ in paths]).astype("i2")
        file["topk_values"] = rng.uniform(0, 1, (CLIPS, 20)).astype("f2")
        file["seeds"] = rng.integers(2**31, size=CLIPS).astype("i4")
    heard = {"filename": [path.name for path in paths], "start": 0.0, "end": 10.0}
    pandas.DataFrame(heard).to_parquet(logits / "ep1_0.parquet")
    files = pandas.DataFrame({"filename": [path.name for path in paths], "hdf5path": str(folder / "clips.h5")})
    module, utils = importlib.import_module("dataset"), importlib.import_module("utils")
    # What this stack no longer takes: an option of pandas, a tensor as the seed of `random`.
    read = pandas.read_parquet
    monkeypatch.setattr(pandas, "read_parquet", lambda path, use_nullable_dtypes: read(path))
    fixed_seed = utils.FixSeedContext
    monkeypatch.setattr(utils, "FixSeedContext", lambda seed: fixed_seed(int(seed)))
    shift = importlib.import_module("torch_audiomentations").Shift(-0.5, 0.5, sample_rate=16_000, output_type="tensor")
    return module.LogitsReader(files, logits, label_type="zero", wavtransforms=shift.train())


def ceds_steps(dataset: Any) -> Iterator[float]:
    """Steps of CED-tiny by their own function, with their network, masks and mixup."""
    run, augment = importlib.import_module("run"), importlib.import_module("augment")
    network = importlib.import_module("models").audiotransformer_tiny(pooling="logit", init_bn=True)
    masks = importlib.import_module("utils").parse_spectransforms(
        [{"TimeMasking": {"time_mask_param": 192}}, {"FrequencyMasking": {"freq_mask_param": 24}}]
    )
    assert isinstance(masks[0], augment.TimeMasking)
    settings = type("Settings", (), {"disable_consistency": False, "mixup": 0.5})
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    step = run._step(network, optimizer, torch.nn.BCEWithLogitsLoss(reduction="none"), masks, settings)
    while True:
        for batch in DataLoader(dataset, batch_size=SHARD, shuffle=True, drop_last=True):
            yield step(None, batch)["total_loss"]


def test_ced_tiny_beside_ced(clips, project, tmp_path, start, monkeypatch, capsys):
    paths = clips(16_000, "WAV")
    project("CED")
    pytest.importorskip("ignite")
    dataset = ceds_dataset(paths, tmp_path, monkeypatch)
    recipe, settings = "ced-balanced", recipe_settings(paths, tmp_path, SHARD)
    settings += store_of(paths, tmp_path, recipe, settings, rate=16_000, k=20)
    ways = {"theirs": ceds_steps(dataset), "ours": our_steps(start, recipe, settings)}
    compare_steps("CED-tiny taught by the 20 largest stored logits of the same views; CED", SHARD, ways, capsys)


LIVE = """
name = "live"
edges = [{teacher = "teacher", student = "student", weight = 0.5}]
schedule = {kind = "one_way", teachers = ["teacher"], teacher_steps = 0, steps = 1000}

[models.student]
arch = {family = "mn", width = 0.4}
front_end = {kind = "efficientat128"}

[models.teacher]
arch = {family = "mn", width = 1.0}
front_end = {kind = "efficientat128"}
init = "%s"
"""


def torchdistills_steps(dataset: Any, teacher: torch.nn.Module, student: torch.nn.Module) -> Iterator[float]:
    """Steps of torchdistill's box for one teacher and one student, with its loss and its configuration's keys."""
    module = importlib.import_module("torchdistill.core.distillation")
    outputs = {
        f"{model}_module_{key}": value
        for model in ("student", "teacher")
        for key, value in (("path", "."), ("io", "output"))
    }
    loss = {"key": "KDLoss", "kwargs": {**outputs, "temperature": 1.0, "alpha": 0.5}}
    part = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
    loader = {"sampler": {"class_or_func": RandomSampler}, "kwargs": {"batch_size": SHARD, "drop_last": True}}
    config = {
        "num_epochs": 1000,
        "train_data_loader": {"dataset_id": "clips", **loader},
        "val_data_loader": {"dataset_id": "clips", **loader},
        "teacher": {**part, "requires_grad": False},
        "student": {**part, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-3}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    box = module.get_distillation_box(
        teacher, student, {"clips": dataset}, config, torch.device("cpu"), None, False, 1.0
    )
    while True:
        box.pre_epoch_process(epoch=0)
        for mel_BMF, y_B, more in box.train_data_loader:
            loss_value = box.forward_process(mel_BMF, y_B, more)
            box.post_forward_process(loss=loss_value)
            yield loss_value.item()


class LogMels(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Log-mels of WAV files, computed when they are heard, and the numbers of their tags."""

    def __init__(self, paths: list[Path], front_end: torch.nn.Module) -> None:
        self._paths, self._front_end = paths, front_end

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        x_T = torch.from_numpy(soundfile.read(self._paths[number], dtype="float32")[0])
        with torch.no_grad():
            return self._front_end(x_T[None])[0], number % 10


def test_a_live_teacher_beside_torchdistill(clips, official, tmp_path, start, capsys):
    pytest.importorskip("torchdistill")
    paths = clips(32_000, "WAV")
    shape: dict[str, Any] = {
        "tags": tuple(f"tag{number}" for number in range(10)),
        "labels": "single",
        "clip_seconds": 10.0,
        "clip_rate": 32_000,
    }
    models = {
        name: Model(arch=MN(family="mn", width=width), front_end=FrontEnd(kind="efficientat128"))
        for name, width in (("teacher", 1.0), ("student", 0.4))
    }
    teacher, student = (build_tagger(model, name=name, seed=0, **shape) for name, model in models.items())
    folder = publish(teacher.eval(), tmp_path / "teacher")
    (tmp_path / "live.toml").write_text(LIVE % folder)
    settings = recipe_settings(paths, tmp_path, SHARD, labels="single", tags=10)
    dataset = LogMels(paths, student.front_end)
    ways = {
        "theirs": torchdistills_steps(dataset, teacher, student.train()),
        "ours": our_steps(start, str(tmp_path / "live.toml"), settings),
    }
    compare_steps("mn04 taught by a frozen mn10; torchdistill", SHARD, ways, capsys)
