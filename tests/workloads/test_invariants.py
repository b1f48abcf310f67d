"""What must hold for every schedule (the list in docs/architecture.md), in the real loop with small models."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch

from orchestrator.recipes.loader import load_recipe, shipped_names
from tests.commands import event_records
from workloads.config.schedules import Mutual
from workloads.distill.edges import EdgeTerm, student_loss
from workloads.distill.schedule import edge_weights
from workloads.train import loop
from workloads.train_step import train_step

SCHEDULES = ("one-way", "generations", "alternate", "mutual", "gated", "per-sample")
SHORT = {
    "one-way": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "frames-demo": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "control-same-family": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "control-shuffled-teacher": ("schedule.teacher_steps=3", "schedule.steps=3"),
    "generations": ("schedule.steps=3",),
    "mutual": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
    "gated": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
    "per-sample": ("schedule.burn_in=3", "schedule.steps=3", "schedule.ramp=0"),
}
TURNS = ("schedule.burn_in=3", "schedule.period=3", "schedule.turns=2")  # demo, alternate and what extends them
NEEDS = ["data.root=x", "data.manifest=x.csv"]
# Those without a student of a store, which must be filled before (tests/orchestrator/teaching), and its teachers.
SYNTHETIC = [
    name
    for name in shipped_names()
    if load_recipe(name, NEEDS).data.format == "synthetic" and name not in ("offline-demo", "demo-teachers")
]


def short(tiny, name, *settings):
    return tiny(name, *SHORT.get(name, TURNS), *settings)


def train_to_first_edges(run):
    """Train up to the first phase with edges; returns it, entered, with its teacher sources."""
    for phase in run.phases:
        sources = run.pool.enter_phase(phase)
        if phase.edges:
            return phase, sources
        while run.step < phase.end:
            train_step(run, phase, sources)
            run.step += 1
    raise AssertionError("no phase has edges")


def record_gradients(run, names):
    """Record each model's gradients as the backward leaves them, before they are clipped."""
    recorded = {name: {} for name in names}
    for name in names:
        for key, parameter in run.pool.states[name].tagger.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name, key=key: recorded[name].__setitem__(key, p.grad.clone())
            )
    return recorded


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_gradient_is_that_of_the_models_own_loss_with_teachers_as_constants(tiny, start, name):
    run = start(short(tiny, name, "models.cnn.arch.dropout=0.0") if name != "generations" else short(tiny, name))
    phase, sources = train_to_first_edges(run)
    for state in run.pool.states.values():  # no dropout: the test computes its own forwards
        for module in state.tagger.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    before = {key: copy.deepcopy(state.tagger) for key, state in run.pool.states.items()}
    shard = run.batches.shard(run.step, 0)
    weights = edge_weights(run.recipe, phase, run.step, run.smoothed_scores)
    recorded = record_gradients(run, phase.trains)
    forwards = Counter()
    for key, state in run.pool.states.items():
        state.tagger.register_forward_hook(lambda *_, key=key: forwards.update([key]))
    train_step(run, phase, sources)
    assert forwards == dict.fromkeys(phase.needs, 1)  # one forward, also of a model that trains and teaches

    # outputs of every model as it was before the step: students in training mode, the others in eval mode
    outputs = {key: tagger(shard.mel(tagger.front_end)) for key, tagger in before.items()}
    for name_ in phase.trains:
        terms = [
            EdgeTerm(edge, weights[edge.key], outputs[edge.teacher].detach())
            for edge in phase.edges
            if edge.student == name_
        ]
        loss, _ = student_loss(outputs[name_], shard.y_BC, terms, labels=run.recipe.data.labels, smoothing=0.0)
        own = torch.autograd.grad(loss, before[name_].parameters())
        assert recorded[name_].keys() == dict(before[name_].named_parameters()).keys()
        for (key, _), expected in zip(before[name_].named_parameters(), own, strict=True):
            torch.testing.assert_close(recorded[name_][key], expected, rtol=1e-4, atol=1e-7, msg=f"{name_}.{key}")


@pytest.mark.parametrize("name", ["one-way", "generations", "alternate"])
def test_a_model_that_only_teaches_does_not_change(tiny, start, name):
    run = start(short(tiny, name))
    phase, sources = train_to_first_edges(run)
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
    trained = run.pool.states[student]
    assert trained.tagger.training
    assert trained.own_step > 0


def test_a_snapshot_does_not_change_while_its_model_trains(tiny, start):
    recipe = short(tiny, "mutual", "edges.0.source=snapshot", "schedule.steps=4", "schedule.exchange=2")
    run = start(recipe)
    phase, sources = train_to_first_edges(run)
    shard = run.batches.shard(0, 0)
    first = sources["cnn-to-vit"].outputs(shard, {})["logits"]
    for _ in range(2):
        train_step(run, phase, sources)
        run.step += 1
    torch.testing.assert_close(sources["cnn-to-vit"].outputs(shard, {})["logits"], first, rtol=0, atol=0)
    retaken = run.pool.enter_phase(run.phases[2])
    assert not torch.equal(retaken["cnn-to-vit"].outputs(shard, {})["logits"], first)


def test_an_ema_teacher_uses_its_averaged_weights(tiny, start):
    run = start(short(tiny, "mutual", "edges.0.source=ema"))
    phase, sources = train_to_first_edges(run)
    train_step(run, phase, sources)
    shard = run.batches.shard(0, 0)
    state = run.pool.states["cnn"]
    averaged = state.average.evaluation_model(state.tagger)
    logits = sources["cnn-to-vit"].outputs(shard, {})["logits"]
    with torch.no_grad():
        torch.testing.assert_close(logits, averaged(shard.mel(averaged.front_end)))
        assert not torch.allclose(logits, copy.deepcopy(state.tagger).eval()(shard.mel(averaged.front_end)))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_shipped_recipe_finishes_with_the_planned_steps(tiny, start, name):
    run = start(short(tiny, name))
    assert loop(run) == "done"
    result = event_records(run)[-1]
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


def test_an_offloaded_model_is_restored_bit_for_bit(tiny, start):
    run = start(short(tiny, "demo", "edges=[]"))
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


def test_results_depend_on_shards_not_on_how_many_a_worker_runs(tiny, start):
    """Two shards in one worker: buffers are the mean over both shards, gradients those of the mean loss."""
    run = start(short(tiny, "demo", "edges=[]", "train.shards=2", "models.cnn.arch.dropout=0.0"))
    phase = run.phases[0]
    sources = run.pool.enter_phase(phase)
    initial = copy.deepcopy(run.pool.states["cnn"].tagger)
    recorded = record_gradients(run, ["cnn"])
    train_step(run, phase, sources)

    buffers, grads = [], []
    for index in range(2):
        alone = copy.deepcopy(initial)
        shard = run.batches.shard(0, index)
        loss, _ = student_loss(alone(shard.mel(alone.front_end)), shard.y_BC, [], labels="multi", smoothing=0.0)
        grads.append(torch.autograd.grad(loss, alone.parameters()))
        buffers.append({key: value for key, value in alone.state_dict().items() if "running" in key})
    after = run.pool.states["cnn"].tagger.state_dict()
    assert buffers[0]
    for key in buffers[0]:
        torch.testing.assert_close(after[key], (buffers[0][key] + buffers[1][key]) / 2)
    for (key, _), first, second in zip(initial.named_parameters(), *grads, strict=True):
        torch.testing.assert_close(recorded["cnn"][key], (first + second) / 2, rtol=1e-4, atol=1e-7)


def test_dropout_depends_on_step_and_shard_only(tiny, start):
    recipe = short(tiny, "demo", "edges=[]", "models.cnn.arch.dropout=0.5")
    losses = []
    for disturb in (False, True):
        run = start(recipe)
        sources = run.pool.enter_phase(run.phases[0])
        if disturb:
            torch.manual_seed(12345)
            torch.rand(7)
        losses.append(train_step(run, run.phases[0], sources, log_metrics=True)["cnn/loss"])
    assert losses[0] == losses[1]


def test_models_of_one_architecture_draw_their_own_dropout(tiny, start):
    """Equal weights, the same clips, the same step: only their dropout differs."""
    recipe = short(tiny, "control-same-family", "models.vit.arch.dropout=0.5", "models.teacher.arch.dropout=0.5")
    recipe = replace(recipe, schedule=Mutual(kind="mutual", burn_in=3, steps=3))
    run = start(recipe)
    sources = run.pool.enter_phase(run.phases[0])
    teacher, student = (run.pool.states[name].tagger for name in ("teacher", "vit"))
    student.load_state_dict(teacher.state_dict())
    values = train_step(run, run.phases[0], sources, log_metrics=True)
    assert values["teacher/loss"] != values["vit/loss"]


def test_a_resumed_run_ends_with_the_same_bits(tiny, start):
    recipe = short(
        tiny, "alternate", "edges.0.source=snapshot", "train.checkpoint_every=2", "models.cnn.arch.dropout=0.2"
    )
    uninterrupted = start(recipe)
    assert loop(uninterrupted) == "done"
    stops = iter([False] * 4 + [True])
    cut = start(recipe, should_stop=lambda: next(stops))
    assert loop(cut) == "preempted"
    resumed = start(recipe, checkpoints_of=cut)
    assert resumed.step == 5
    assert loop(resumed) == "done"
    expected, resulting = event_records(uninterrupted)[-1]["models"], event_records(resumed)[-1]["models"]
    for model in recipe.models:
        assert resulting[model]["weights_sha256"] == expected[model]["weights_sha256"]
        assert resulting[model]["test"] == expected[model]["test"]
    assert event_records(resumed)[-1]["resumed_from_step"] == 5


def test_a_run_with_a_last_step_saves_there(tiny, start):
    recipe = short(tiny, "alternate")
    cut = start(recipe)
    assert loop(cut, until=5) == "preempted"
    again = start(recipe, checkpoints_of=cut)
    assert again.step == 5
    assert loop(again, until=5) == "preempted", "that step is done already"
    assert again.step == 5
    assert not [record for record in event_records(again) if record["kind"] in ("metrics", "phase")], (
        "no step was trained"
    )


def test_models_get_the_same_clips_through_their_own_front_ends(tiny, start):
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
    shapes = [shard.mel(state.tagger.front_end).shape for state in run.pool.states.values()]
    assert shapes == [(8, 128, 100), (8, 128, 98)]
    assert loop(run) == "done"


def test_roles_change_at_checkpoints_and_are_recorded(tiny, start):
    run = start(short(tiny, "demo"))
    loop(run)
    records = [record for record in event_records(run) if record["kind"] in ("phase", "checkpoint")]
    assert [(record["kind"], record["step"]) for record in records] == [
        ("phase", 0),
        ("checkpoint", 3),
        ("phase", 3),
        ("checkpoint", 6),
        ("phase", 6),
        ("checkpoint", 9),
    ]
    assert [record["trains"] for record in records if record["kind"] == "phase"] == [["cnn", "vit"], ["vit"], ["cnn"]]
    assert records[2]["edges"][0]["key"] == "cnn-to-vit"


def test_learning_rates_count_the_models_own_steps(tiny, start):
    run = start(short(tiny, "demo", "models.cnn.optimizer.lr=0.5", "models.cnn.optimizer.warmup=0.5"))
    loop(run)
    rates = {
        record["step"]: record["values"]["cnn/lr"]
        for record in event_records(run)
        if record["kind"] == "metrics" and "cnn/lr" in record["values"]
    }
    # six steps of the model: three of burn-in, none while the vit trains (4 to 6), three more; warm-up over three
    assert list(rates) == [1, 2, 3, 7, 8, 9]
    assert rates == pytest.approx({1: 0.125, 2: 0.25, 3: 0.375, 7: 0.5, 8: 0.375, 9: 0.125})


def test_the_test_fold_influences_nothing(tiny, start):
    results = []
    for clips in (slice(None), slice(0, 12)):
        run = start(short(tiny, "gated", "train.eval_every=1"))
        splits = run.prepared.splits
        run.prepared = replace(run.prepared, splits=replace(splits, test=splits.test[clips]))
        loop(run)
        results.append(event_records(run)[-1]["models"])
    assert results[0]["cnn"]["test"] != results[1]["cnn"]["test"]
    for name in ("cnn", "vit"):
        assert results[0][name]["weights_sha256"] == results[1][name]["weights_sha256"]
        assert results[0][name]["val"] == results[1][name]["val"]


def test_gated_weights_follow_validation(tiny, start):
    run = start(short(tiny, "gated", "train.eval_every=1", "schedule.margin=0.01"))
    loop(run)
    weights = {
        record["values"]["cnn-to-vit/weight"]
        for record in event_records(run)
        if record["kind"] == "metrics" and "cnn-to-vit/weight" in record["values"]
    }
    assert len(weights) > 1
    assert all(0.5 * 0.3 <= weight <= 0.5 for weight in weights)


def test_a_teacher_may_get_the_clean_clip(tiny, start):
    noisy = ("augment.gain_db=20", "augment.roll=1.0", "edges.0.view=clean")
    run = start(short(tiny, "one-way", *noisy))
    assert [phase.needs_clean_view for phase in run.phases] == [False, True], "loaded only where an edge asks for it"
    phase, sources = train_to_first_edges(run)
    shard = run.batches.shard(run.step, 0, with_clean_view=True)
    teacher = run.pool.states["cnn"].tagger
    with torch.no_grad():
        torch.testing.assert_close(
            sources["cnn-to-vit"].outputs(shard, {})["logits"], teacher(shard.clean().mel(teacher.front_end))
        )
    assert not torch.equal(shard.clean().x_BT, shard.x_BT)
    assert train_step(run, phase, sources, log_metrics=True)["vit/loss"] > 0, "the step asks for the clean view"


def test_bf16_runs_and_keeps_losses_and_weights_in_fp32(tiny, start):
    run = start(short(tiny, "mutual", "train.precision=bf16"))
    phase, sources = train_to_first_edges(run)
    dtypes = {}
    for name, state in run.pool.states.items():
        state.tagger.register_forward_hook(lambda *args, name=name: dtypes.__setitem__(name, args[2].dtype))
    stats = train_step(run, phase, sources, log_metrics=True)
    assert all(torch.isfinite(torch.tensor(value)) for value in stats.values())
    assert {parameter.dtype for parameter in run.pool.states["vit"].tagger.parameters()} == {torch.float32}
    assert dtypes == {"cnn": torch.bfloat16, "vit": torch.bfloat16}
