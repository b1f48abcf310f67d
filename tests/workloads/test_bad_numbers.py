"""A loss or gradient that is not finite: the run stops there, or that model's step is skipped as if it had not been."""

import pytest
import torch

from workloads import train
from workloads.evaluate.predict import BadNumbers
from workloads.runtime.event_log import read_event_log
from workloads.train import loop, train_step


@pytest.fixture
def poison(monkeypatch):
    """Let the loss of one model be `value` at one step: the losses are asked for model by model, in order."""

    def put(run, *, model: str, step: int, value: float):
        real = train.student_loss

        def poisoned(logits_BC, *arguments, **named):
            loss, parts = real(logits_BC, *arguments, **named)
            student = run.pool.states[model]
            mine = run.step == step and logits_BC.grad_fn is not None and said[model] is logits_BC
            return (loss * value if mine and student.tagger.training else loss), parts

        said: dict[str, torch.Tensor] = {}
        forward = train._forward

        def remembered(*arguments, **named):
            said.update(student_outputs := forward(*arguments, **named))
            return student_outputs

        monkeypatch.setattr(train, "_forward", remembered)
        monkeypatch.setattr(train, "student_loss", poisoned)

    return put


def everything(member) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in member.tensors().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_stops_at_the_step_and_names_the_clips(tiny, start, poison, value):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4"))
    poison(run, model="vit", step=2, value=value)
    with pytest.raises(BadNumbers, match="step 2: loss or gradient of vit is not finite"):
        loop(run)
    (bad,) = [r for r in read_event_log(run.session.work_dir.parent / "events.jsonl") if r["kind"] == "bad"]
    assert (bad["step"], bad["models"], bad["policy"]) == (2, ["vit"], "stop")
    assert bad["clip_ids"] == list(run.batches.shard(2, 0).clip_ids)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_skipped_step_leaves_the_model_as_it_was_and_the_other_one_learns(tiny, start, poison, shards):
    settings = ["train.bad_numbers=skip", f"train.shards={shards}", "models.cnn.average.kind=ema"]
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4", *settings))
    poison(run, model="cnn", step=1, value=float("nan"))
    phase = run.phases[0]
    sources = run.pool.enter_phase(phase)
    train_step(run, phase, sources)
    run.step = 1
    cnn, vit = run.pool.states["cnn"], run.pool.states["vit"]
    before, other = everything(cnn), everything(vit)
    assert any("running_mean" in name for name in before)
    train_step(run, phase, sources)
    assert equal(everything(cnn), before)
    assert not equal(everything(vit), other)
    assert (cnn.own_step, cnn.skipped, vit.own_step, vit.skipped) == (2, 1, 2, 0)
    run.step = 2
    train_step(run, phase, sources)
    assert not equal(everything(cnn), before)
    assert all(tensor.isfinite().all() for tensor in everything(cnn).values())


def test_skipped_steps_are_counted_to_the_end(tiny, start, poison):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4", "train.bad_numbers=skip"))
    poison(run, model="vit", step=3, value=float("inf"))
    assert loop(run) == "done"
    result = read_event_log(run.session.work_dir.parent / "events.jsonl")[-1]["models"]
    assert {name: (row["steps_skipped"], row["steps_learned"]) for name, row in result.items()} == {
        "cnn": (0, 8),
        "vit": (1, 8),
    }


def test_weights_that_diverged_are_told_where_they_are_scored(tiny, start):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4"))
    for parameter in run.pool.train_state("vit").tagger.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(BadNumbers, match="logits of 20 of 20 clips are not finite"):
        train.score_clips(run.pool.states["vit"].tagger, run.prepared.splits.test, run.prepared, run.session)
