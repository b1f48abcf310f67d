"""What must hold whatever the schedule (the list in the design), on the real loop with small models."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch

from orchestrator.recipes.loader import load_recipe, shipped_names
from workloads.distill.edges import EdgeTerm, student_loss
from workloads.distill.schedule import edge_weights
from workloads.train import loop, train_step

SCHEDULES = ("one-way", "generations", "alternate", "mutual", "gated", "per-sample")
SHORT = {
    "one-way": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "control-same-family": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "control-shuffled-teacher": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "generations": ("schedule.steps=3",),
    "mutual": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
    "gated": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
    "per-sample": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
}
TURNS = ("schedule.burn_in=3", "schedule.period=3", "schedule.turns=2")  # demo, alternate and what extends them
NEEDS = ["data.root=x", "data.manifest=x.csv"]
SYNTHETIC = [name for name in shipped_names() if load_recipe(name, NEEDS).data.format == "synthetic"]


def short(tiny, name, *settings):
    return tiny(name, *SHORT.get(name, TURNS), *settings)


def walk_to_teaching(run):
    """Take the run's steps until the first phase with edges; returns it, entered, with its sources."""
    for phase in run.phases:
        sources = run.pool.enter_phase(phase)
        if phase.edges:
            return phase, sources
        while run.step < phase.end:
            train_step(run, phase, sources)
            run.step += 1
    raise AssertionError("no phase has edges")


def gradients(run, names):
    """Catch each model's gradients as the backward leaves them, before clipping and the optimizer see them."""
    caught = {name: {} for name in names}
    for name in names:
        for key, parameter in run.pool.states[name].tagger.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, key=key: caught[name].__setitem__(key, p.grad.clone())
            )
    return caught


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_gradient_is_that_of_the_models_own_loss_with_teachers_as_constants(tiny, start, name):
    run = start(short(tiny, name, "models.cnn.arch.dropout=0.0") if name != "generations" else short(tiny, name))
    phase, sources = walk_to_teaching(run)
    for member in run.pool.states.values():  # dropout off: the test draws its own forwards
        for module in member.tagger.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    before = {key: copy.deepcopy(member.tagger) for key, member in run.pool.states.items()}
    shard = run.batches.shard(run.step, 0)
    weights = edge_weights(run.recipe, phase, run.step, run.scores)
    caught = gradients(run, phase.trains)
    forwards = Counter()
    for key, member in run.pool.states.items():
        member.tagger.register_forward_hook(lambda *_, key=key: forwards.update([key]))
    train_step(run, phase, sources)
    assert forwards == dict.fromkeys(phase.needs, 1)  # also a model that learns and teaches speaks once

    # every model says its piece once, as it stood before the step: those that learn in training mode, others in eval
    said = {key: tagger(shard.mel(tagger.front_end)) for key, tagger in before.items()}
    for name_ in phase.trains:
        terms = [
            EdgeTerm(edge, weights[edge.key], said[edge.teacher].detach())
            for edge in phase.edges
            if edge.student == name_
        ]
        loss, _ = student_loss(said[name_], shard.y_BC, terms, labels=run.recipe.data.labels, smoothing=0.0)
        own = torch.autograd.grad(loss, before[name_].parameters())
        assert caught[name_].keys() == dict(before[name_].named_parameters()).keys()
        for (key, _), expected in zip(before[name_].named_parameters(), own, strict=True):
            torch.testing.assert_close(caught[name_][key], expected, rtol=1e-4, atol=1e-7, msg=f"{name_}.{key}")


@pytest.mark.parametrize("name", ["one-way", "generations", "alternate"])
def test_a_model_that_only_teaches_stands_still(tiny, start, name):
    run = start(short(tiny, name))
    phase, sources = walk_to_teaching(run)
    (teacher,) = phase.teachers
    assert teacher not in phase.trains
    tagger = run.pool.states[teacher].tagger
    state = copy.deepcopy(tagger.state_dict())
    train_step(run, phase, sources)
    assert not tagger.training
    assert all(parameter.grad is None for parameter in tagger.parameters())
    after = tagger.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    (student,) = phase.trains
    moved = run.pool.states[student]
    assert moved.tagger.training
    assert moved.own_step > 0


def test_a_snapshot_teaches_as_it_was_while_its_model_learns_on(tiny, start):
    recipe = short(tiny, "mutual", "edges.0.source=snapshot", "schedule.steps=4", "schedule.exchange=2")
    run = start(recipe)
    phase, sources = walk_to_teaching(run)
    shard = run.batches.shard(0, 0)
    first = sources["cnn-to-vit"].logits(shard, {})
    for _ in range(2):
        train_step(run, phase, sources)
        run.step += 1
    torch.testing.assert_close(sources["cnn-to-vit"].logits(shard, {}), first, rtol=0, atol=0)
    retaken = run.pool.enter_phase(run.phases[2])
    assert not torch.equal(retaken["cnn-to-vit"].logits(shard, {}), first)


def test_an_ema_teacher_speaks_with_its_averaged_weights(tiny, start):
    run = start(short(tiny, "mutual", "edges.0.source=ema"))
    phase, sources = walk_to_teaching(run)
    train_step(run, phase, sources)
    shard = run.batches.shard(0, 0)
    member = run.pool.states["cnn"]
    averaged = member.average.candidate(member.tagger)
    said = sources["cnn-to-vit"].logits(shard, {})
    with torch.no_grad():
        torch.testing.assert_close(said, averaged(shard.mel(averaged.front_end)))
        assert not torch.allclose(said, copy.deepcopy(member.tagger).eval()(shard.mel(averaged.front_end)))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_shipped_recipe_runs_to_its_end_with_the_steps_it_planned(tiny, start, name):
    run = start(short(tiny, name))
    assert loop(run) == "done"
    result = spool_of(run)[-1]
    assert result["kind"] == "result"
    assert result["steps"] == run.phases[-1].end
    for model, row in result["models"].items():
        learned = sum(phase.steps for phase in run.phases if model in phase.trains)
        taught = sum(phase.steps for phase in run.phases if model in phase.teachers)
        assert (row["steps_learned"], row["steps_taught"]) == (learned, taught)
        assert 0 <= row["test"]["mAP"] <= 1


def test_only_the_models_a_phase_needs_are_in_memory(tiny, start):
    run = start(short(tiny, "generations"))
    seen = []
    for phase in run.phases:
        run.pool.enter_phase(phase)
        seen.append(sorted(run.pool.states))
    assert seen == [["cnn0"], ["cnn0", "vit1"], ["cnn1", "vit1"]]


def test_a_parked_model_comes_back_bit_for_bit(tiny, start):
    run = start(short(tiny, "control-no-teacher"))
    burn_in, first, second = run.phases
    sources = run.pool.enter_phase(burn_in)
    train_step(run, burn_in, sources)
    before = {key: tensor.clone() for key, tensor in run.pool.states["cnn"].tensors().items()}
    run.pool.enter_phase(first)  # edges closed: the cnn is not needed while the vit learns
    assert "cnn" not in run.pool.states
    run.pool.enter_phase(second)
    after = run.pool.states["cnn"].tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_what_is_learned_depends_on_shards_not_on_turns(tiny, start):
    """Two shards in one worker: buffers are the mean of both shards' and gradients the mean of both losses'."""
    run = start(short(tiny, "control-no-teacher", "train.shards=2", "models.cnn.arch.dropout=0.0"))
    phase = run.phases[0]
    sources = run.pool.enter_phase(phase)
    start_from = copy.deepcopy(run.pool.states["cnn"].tagger)
    caught = gradients(run, ["cnn"])
    train_step(run, phase, sources)

    buffers, grads = [], []
    for index in range(2):
        alone = copy.deepcopy(start_from)
        shard = run.batches.shard(0, index)
        loss, _ = student_loss(alone(shard.mel(alone.front_end)), shard.y_BC, [], labels="multi", smoothing=0.0)
        grads.append(torch.autograd.grad(loss, alone.parameters()))
        buffers.append({key: value for key, value in alone.state_dict().items() if "running" in key})
    now = run.pool.states["cnn"].tagger.state_dict()
    assert buffers[0]
    for key in buffers[0]:
        torch.testing.assert_close(now[key], (buffers[0][key] + buffers[1][key]) / 2)
    for (key, _), first, second in zip(start_from.named_parameters(), *grads, strict=True):
        torch.testing.assert_close(caught["cnn"][key], (first + second) / 2, rtol=1e-4, atol=1e-7)


def test_dropout_depends_on_step_and_shard_only(tiny, start):
    recipe = short(tiny, "control-no-teacher", "models.cnn.arch.dropout=0.5")
    losses = []
    for disturb in (False, True):
        run = start(recipe)
        sources = run.pool.enter_phase(run.phases[0])
        if disturb:
            torch.manual_seed(12345)
            torch.rand(7)
        losses.append(train_step(run, run.phases[0], sources, wants_log=True)["cnn/loss"])
    assert losses[0] == losses[1]


def test_a_resumed_run_ends_with_the_same_bits(tiny, start):
    recipe = short(
        tiny, "alternate", "edges.0.source=snapshot", "train.checkpoint_every=2", "models.cnn.arch.dropout=0.2"
    )
    whole = start(recipe)
    assert loop(whole) == "done"
    stops = iter([False] * 4 + [True])
    cut = start(recipe, should_stop=lambda: next(stops))
    assert loop(cut) == "preempted"
    resumed = start(recipe, shelf_of=cut)
    assert resumed.step == 5
    assert loop(resumed) == "done"
    expected, got = spool_of(whole)[-1]["models"], spool_of(resumed)[-1]["models"]
    for model in recipe.models:
        assert got[model]["weights_sha256"] == expected[model]["weights_sha256"]
        assert got[model]["test"] == expected[model]["test"]
    assert spool_of(resumed)[-1]["resumed_from_step"] == 5


def test_a_run_that_goes_no_further_than_some_step_saves_there(tiny, start):
    recipe = short(tiny, "alternate")
    cut = start(recipe)
    assert loop(cut, until=5) == "preempted"
    again = start(recipe, shelf_of=cut)
    assert again.step == 5
    assert loop(again, until=5) == "preempted", "it is there already"
    assert again.step == 5
    assert not [record for record in spool_of(again) if record["kind"] in ("metrics", "phase")], "it learned nothing"


def test_models_hear_the_same_clips_through_front_ends_of_their_own(tiny, start):
    recipe = short(
        tiny,
        "mutual",
        'models.cnn.front_end={kind="efficientat128"}',
        'models.vit.front_end={kind="kaldi128"}',
        "augment.mixup=0.5",
        "augment.roll=0.5",
    )
    assert recipe.rate == 32_000
    run = start(recipe)
    run.pool.enter_phase(run.phases[0])
    shard = run.batches.shard(0, 0)
    assert shard.x_BT.shape == (8, 32_000)
    shapes = [shard.mel(member.tagger.front_end).shape for member in run.pool.states.values()]
    assert shapes == [(8, 128, 100), (8, 128, 98)]
    assert loop(run) == "done"


def test_roles_change_at_checkpoints_and_are_told(tiny, start):
    run = start(short(tiny, "demo"))
    loop(run)
    told = [record for record in spool_of(run) if record["kind"] in ("phase", "checkpoint")]
    assert [(record["kind"], record["step"]) for record in told] == [
        ("phase", 0),
        ("checkpoint", 3),
        ("phase", 3),
        ("checkpoint", 6),
        ("phase", 6),
        ("checkpoint", 9),
    ]
    assert [record["trains"] for record in told if record["kind"] == "phase"] == [["cnn", "vit"], ["vit"], ["cnn"]]
    assert told[2]["edges"][0]["key"] == "cnn-to-vit"


def test_learning_rates_count_the_models_own_steps(tiny, start):
    run = start(short(tiny, "demo", "models.cnn.optimizer.lr=0.5", "models.cnn.optimizer.warmup=0.5"))
    loop(run)
    rates = {
        record["step"]: record["values"]["cnn/lr"]
        for record in spool_of(run)
        if record["kind"] == "metrics" and "cnn/lr" in record["values"]
    }
    # six own steps in all: three of burn-in, none while the vit learns (4 to 6), three more; warm-up over three
    assert list(rates) == [1, 2, 3, 7, 8, 9]
    assert rates == pytest.approx({1: 0.125, 2: 0.25, 3: 0.375, 7: 0.5, 8: 0.375, 9: 0.125})


def test_the_test_fold_steers_nothing(tiny, start):
    ends = []
    for clips in (slice(None), slice(0, 12)):
        run = start(short(tiny, "gated", "train.eval_every=1"))
        splits = run.prepared.splits
        run.prepared = replace(run.prepared, splits=replace(splits, test=splits.test[clips]))
        loop(run)
        ends.append(spool_of(run)[-1]["models"])
    assert ends[0]["cnn"]["test"] != ends[1]["cnn"]["test"]
    for name in ("cnn", "vit"):
        assert ends[0][name]["weights_sha256"] == ends[1][name]["weights_sha256"]
        assert ends[0][name]["val"] == ends[1][name]["val"]


def test_validation_steers_the_gated_weights(tiny, start):
    run = start(short(tiny, "gated", "train.eval_every=1", "schedule.margin=0.01"))
    loop(run)
    weights = {
        record["values"]["cnn-to-vit/weight"]
        for record in spool_of(run)
        if record["kind"] == "metrics" and "cnn-to-vit/weight" in record["values"]
    }
    assert len(weights) > 1
    assert all(0.5 * 0.3 <= weight <= 0.5 for weight in weights)


def test_a_teacher_may_hear_the_clean_clip(tiny, start):
    noisy = ("augment.gain_db=20", "augment.roll=1.0", "edges.0.view=clean")
    run = start(short(tiny, "one-way", *noisy))
    _, sources = walk_to_teaching(run)
    shard = run.batches.shard(run.step, 0)
    teacher = run.pool.states["cnn"].tagger
    with torch.no_grad():
        torch.testing.assert_close(
            sources["cnn-to-vit"].logits(shard, {}), teacher(shard.clean().mel(teacher.front_end))
        )
    assert not torch.equal(shard.clean().x_BT, shard.x_BT)


def test_bf16_runs_and_keeps_losses_and_weights_in_fp32(tiny, start):
    run = start(short(tiny, "mutual", "train.precision=bf16"))
    phase, sources = walk_to_teaching(run)
    said = {}
    for name, member in run.pool.states.items():
        member.tagger.register_forward_hook(lambda *args, name=name: said.__setitem__(name, args[2].dtype))
    stats = train_step(run, phase, sources, wants_log=True)
    assert all(torch.isfinite(torch.tensor(value)) for value in stats.values())
    assert {parameter.dtype for parameter in run.pool.states["vit"].tagger.parameters()} == {torch.float32}
    assert said == {"cnn": torch.bfloat16, "vit": torch.bfloat16}


def spool_of(run):
    from workloads.runtime.event_log import read_event_log

    return read_event_log(run.session.work_dir.parent / "events.jsonl")
