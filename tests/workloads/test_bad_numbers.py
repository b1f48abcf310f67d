"""A loss or gradient that is not finite: the run stops at that step, or the model skips it and stays unchanged."""

import pytest
import torch

from tests.commands import event_records
from workloads import train_step as step_module
from workloads.evaluate.predict import BadNumbers, score_clips
from workloads.train import loop
from workloads.train_step import train_step


@pytest.fixture
def spoil_loss(monkeypatch):
    """Multiply the loss of one model by `value` at one step."""

    def install(run, *, model: str, step: int, value: float):
        real_loss, real_forward = step_module.student_loss, step_module._forward
        student_outputs: dict[str, dict[str, torch.Tensor]] = {}

        def recording_forward(*arguments, **named):
            student_outputs.update(outputs := real_forward(*arguments, **named))
            return outputs

        def spoiled_loss(logits_BC, *arguments, **named):
            loss, parts = real_loss(logits_BC, *arguments, **named)
            student = run.pool.states[model]
            chosen = (
                run.step == step and logits_BC.grad_fn is not None and student_outputs[model]["logits"] is logits_BC
            )
            return (loss * value if chosen and student.tagger.training else loss), parts

        monkeypatch.setattr(step_module, "_forward", recording_forward)
        monkeypatch.setattr(step_module, "student_loss", spoiled_loss)

    return install


def copied_tensors(state) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_stops_at_the_step_and_names_the_clips(tiny, start, spoil_loss, value):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4"))
    spoil_loss(run, model="vit", step=2, value=value)
    with pytest.raises(BadNumbers, match="step 2: loss or gradient of vit is not finite"):
        loop(run)
    (bad,) = [record for record in event_records(run) if record["kind"] == "bad"]
    assert (bad["step"], bad["models"], bad["policy"]) == (2, ["vit"], "stop")
    assert bad["clip_ids"] == list(run.batches.shard(2, 0).clip_ids)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_skipped_step_leaves_the_model_unchanged_and_the_other_one_trains(tiny, start, spoil_loss, shards):
    settings = ["train.bad_numbers=skip", f"train.shards={shards}", "models.cnn.average.kind=ema"]
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4", *settings))
    spoil_loss(run, model="cnn", step=1, value=float("nan"))
    phase = run.phases[0]
    sources = run.pool.enter_phase(phase)
    train_step(run, phase, sources)
    run.step = 1
    cnn, vit = run.pool.states["cnn"], run.pool.states["vit"]
    before, other = copied_tensors(cnn), copied_tensors(vit)
    assert any("running_mean" in name for name in before)
    train_step(run, phase, sources)
    assert equal(copied_tensors(cnn), before)
    assert not equal(copied_tensors(vit), other)
    assert (cnn.own_step, cnn.skipped_steps, vit.own_step, vit.skipped_steps) == (2, 1, 2, 0)
    run.step = 2
    train_step(run, phase, sources)
    assert not equal(copied_tensors(cnn), before)
    assert all(tensor.isfinite().all() for tensor in copied_tensors(cnn).values())


def test_skipped_steps_are_in_the_result(tiny, start, spoil_loss):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4", "train.bad_numbers=skip"))
    spoil_loss(run, model="vit", step=3, value=float("inf"))
    assert loop(run) == "done"
    result = event_records(run)[-1]["models"]
    assert {name: (row["steps_skipped"], row["steps_learned"]) for name, row in result.items()} == {
        "cnn": (0, 8),
        "vit": (1, 8),
    }


def test_scoring_reports_weights_that_diverged(tiny, start):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4"))
    for parameter in run.pool.train_state("vit").tagger.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(BadNumbers, match="logits of 20 of 20 clips are not finite"):
        score_clips(run.pool.states["vit"].tagger, run.prepared.splits.test, run.prepared, run.placement.workers)
