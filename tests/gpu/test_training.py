"""Every family, precision and role schedule, and a resume, in the real loop with small models."""

import math

import pytest
import torch

from tests import small
from tests.commands import event_records
from tests.resumed import rows_uninterrupted_and_resumed
from tests.workloads.test_invariants import SCHEDULES, short
from workloads.evaluate import metrics
from workloads.evaluate.predict import load_tagger, predict_clips
from workloads.train import loop
from workloads.train_step import train_step

pytestmark = pytest.mark.gpu
FAMILIES = {
    "mn": ('{family="mn", width=0.1, dropout=0.0, bn_momentum=0.1}', "efficientat128"),
    "mn_attention": ('{family="mn", width=0.1, dropout=0.0, head="attention", se_axes=["c", "f", "t"]}', "logmel64"),
    "dymn": ('{family="dymn", width=0.1, dropout=0.0}', "efficientat128"),
    "efficientnet": ('{family="efficientnet", variant="b0"}', "kaldi128"),
    "vit": ('{family="vit", dim=16, depth=1, heads=2}', "logmel64"),
    "timm": ('{family="timm", name="resnet10t"}', "logmel64"),
    "ast": ('{family="ast", size="tiny"}', "kaldi128"),
    "passt": ('{family="passt", depth=1}', "efficientat128"),
    "eat": ('{family="eat", depth=1}', "kaldi128"),
    "ced": ('{family="ced", size="tiny"}', "ced64"),
    "wav2vec2": (
        '{family="wav2vec2", dim=32, depth=2, heads=2, channels=16, dropout=0.0, freeze_features=false}',
        "waveform16k_norm",
    ),
    **{
        variant: (f'{{family="ondevice", variant="{variant}"}}', "logmel40")
        for variant in ("lstm_p", "tc_resnet", "crnn", "att_rnn", "mhatt_rnn")
    },
}
PRECISIONS = {"fp32": ["train.precision=fp32"], "tf32": ["train.tf32=true"], "bf16": ["train.precision=bf16"]}
# Largest relative difference from the CPU in fp32: of the loss, of the gradient norm. Spectra of near-silence, sums in
# another order and, in tf32 and bf16, inputs of 10 and 7 bits.
TOLERANCES = {"fp32": (1e-3, 0.02), "tf32": (0.01, 0.05), "bf16": (0.02, 0.15)}
SHORT = ["schedule.burn_in=4", "schedule.steps=4"]


def first_steps(run, steps: int) -> list[dict[str, float]]:
    """The metrics of the first steps of a run, in which each model learns from labels alone."""
    sources = run.pool.enter_phase(run.phases[0])
    values = []
    for step in range(steps):
        run.step = step
        values.append(train_step(run, run.phases[0], sources, log_metrics=True))
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_as_on_the_cpu(family, recipe_on, start, start_on, device):
    """In each precision loss and gradient norm of the first step are near those of fp32 on CPU, later ones finite."""
    arch, kind = FAMILIES[family]
    settings = [f"models.cnn.arch={arch}", f"models.cnn.front_end.kind={kind}", *SHORT]
    expected = first_steps(start(recipe_on("cpu", "mutual", *settings)), 1)[0]
    for precision, own in PRECISIONS.items():
        if precision == "tf32" and device == "cpu":
            continue  # refused there
        values = first_steps(start_on(recipe_on(device, "mutual", *settings, *own)), 3)
        for key, tolerance in zip(("cnn/loss", "cnn/grad_norm"), TOLERANCES[precision], strict=True):
            assert values[0][key] == pytest.approx(expected[key], rel=tolerance), (precision, key)
        assert all(math.isfinite(step[key]) for step in values for key in ("cnn/loss", "cnn/grad_norm")), precision


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_runs_to_its_end(name, recipe_on, start_on, device):
    """The scores in its table are those that the delivered taggers get on the CPU, where `evaluate` and `tag` run."""
    run = start_on(short(lambda *settings: recipe_on(device, *settings), name))
    assert loop(run) == "done"
    for name, row in event_records(run)[-1]["models"].items():
        assert row["steps_skipped"] == 0, name
        tagger, _ = load_tagger(row["checkpoint"])
        logits_NC, y_NC, _ = predict_clips(tagger, run.prepared.splits.test, run.prepared)
        on_cpu = metrics.score(logits_NC, y_NC, run.recipe.data.labels)
        assert row["test"]["log_loss"] == pytest.approx(on_cpu["log_loss"], rel=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["mutual", "alternate"])
def test_a_resumed_run_ends_with_the_same_bits(name, precision, recipe_on, start_on, device, deterministic):
    """With deterministic algorithms: without them sums of gradients may be taken in any order on a GPU."""
    if precision == "tf32" and device == "cpu":
        pytest.skip("train.tf32 is refused on the CPU")
    average = "models.cnn.average={kind='ema'}"
    recipe = short(lambda *settings: recipe_on(device, *settings), name, average, *PRECISIONS[precision])
    uninterrupted, resumed = rows_uninterrupted_and_resumed(start_on, recipe)
    for model, row in uninterrupted.items():
        assert resumed[model]["weights_sha256"] == row["weights_sha256"], model
        assert resumed[model]["val"] == row["val"], model


def test_a_compiled_model_trains_as_it_does_uncompiled(recipe_on, start_on, device, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # a run that was killed may damage one
    torch.compiler.reset()
    settings = [f"models.cnn.arch={small.VIT}", *SHORT]  # a CNN takes minutes to compile
    plain, compiled = (
        first_steps(start_on(recipe_on(device, "mutual", *settings, f"train.compile={value}")), 2)
        for value in ("false", "true")
    )
    for one, other in zip(plain, compiled, strict=True):
        assert other["vit/loss"] == pytest.approx(one["vit/loss"], rel=1e-3)
        assert other["vit/grad_norm"] == pytest.approx(one["vit/grad_norm"], rel=0.02)
