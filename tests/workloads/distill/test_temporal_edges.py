"""Edges that carry profiles: the student's steps get the teacher's weights by seconds, and labels lose nothing."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.recipes.loader import load_recipe
from workloads.config.edge import Edge
from workloads.distill.edges import student_loss, temporal_term
from workloads.distill.schedule import label_learners, plan_phases
from workloads.distill.temporal import flatness, heard_steps, on_grid, target_profile, temporal_loss
from workloads.models.profiles import TimeGrid, time_grid
from workloads.run import Run
from workloads.runtime.checkpoint import read_tensors
from workloads.train import advance, loop
from workloads.train_step import train_step

TEMPORAL = "{teacher='vit', student='cnn', carries='temporal', weight=2.0}"
EDGES = f"edges=[{{teacher='vit', student='cnn', weight=0.5}}, {TEMPORAL}]"
ONE_WAY = "schedule={kind='one_way', teachers=['vit'], teacher_steps=2, steps=4}"
KEY = "vit-to-cnn-temporal"
SPOTTER = "models.cnn={arch={family='ondevice', variant='att_rnn'}, front_end={kind='logmel40'}}"


def values(run: Run) -> list[dict[str, float]]:
    records = (run.session.work_dir / "events.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, records) if record["kind"] == "metrics"]


def trained(run: Run, name: str = "cnn") -> dict[str, Tensor]:
    for _ in advance(run):
        pass
    return {key: tensor.clone() for key, tensor in run.pool.train_state(name).tensors().items()}


def grid(count: int, seconds: float = 1.0, first: float = 0.0) -> TimeGrid:
    return TimeGrid(first, seconds / count, count)


@pytest.mark.parametrize("align", ["area", "linear"])
def test_equal_steps_stay_as_they_are_and_constants_constant(align: Any) -> None:
    p_BP = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert torch.equal(on_grid(p_BP, grid(4), grid(4), align), p_BP)
    for count in (2, 3, 7):
        even_BQ = on_grid(torch.full((1, 4), 0.25), grid(4), grid(count), align)
        torch.testing.assert_close(even_BQ / even_BQ.sum(), torch.full((1, count), 1 / count))


def test_area_keeps_a_peak_that_interpolation_misses() -> None:
    peak_BP = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert on_grid(peak_BP, grid(8), grid(2), "area").tolist() == [[1.0, 0.0]]
    assert on_grid(peak_BP, grid(8), grid(2), "linear").tolist() == [[0.0, 0.0]]
    assert on_grid(torch.tensor([[1.0, 0.0]]), grid(2), grid(4), "area").tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert on_grid(torch.tensor([[1.0, 0.0]]), grid(2), grid(4), "linear").tolist() == [[1.0, 0.75, 0.25, 0.0]]


def test_steps_are_matched_by_seconds_not_by_number() -> None:
    """The teacher's two steps last from 0.5 to 1.5 s, the student's four from 0 to 2 s."""
    p_BP = torch.tensor([[0.25, 0.75]])
    assert on_grid(p_BP, grid(2, 1.0, first=0.5), grid(4, 2.0), "area").tolist() == [[0.0, 0.25, 0.75, 0.0]]


def test_the_loss_is_kl_over_the_steps_that_have_sound() -> None:
    heard_BQ = torch.tensor([[True, True, True, False], [True, True, True, True]])
    target_BQ = target_profile(torch.tensor([[0.5, 0.25, 0.0, 0.25], [1.0, 0.0, 0.0, 0.0]]), heard_BQ)
    torch.testing.assert_close(target_BQ, torch.tensor([[2 / 3, 1 / 3, 0, 0], [1.0, 0, 0, 0]]), rtol=0, atol=1e-5)
    even_B = temporal_loss(torch.zeros(2, 4), target_BQ, heard_BQ)
    expected = [math.log(3) + 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3), math.log(4)]
    torch.testing.assert_close(even_B, torch.tensor(expected), rtol=0, atol=1e-4)
    alike = torch.where(heard_BQ, target_BQ, 1.0).log() + torch.tensor([[5.0], [-3.0]])
    torch.testing.assert_close(temporal_loss(alike, target_BQ, heard_BQ), torch.zeros(2), rtol=0, atol=1e-6)
    flat = flatness(target_profile(torch.ones(2, 4), heard_BQ), heard_BQ)
    torch.testing.assert_close(flat, torch.ones(2))
    assert flatness(target_BQ, heard_BQ)[1] < 1e-3


def test_flat_profiles_weigh_nothing_under_the_entropy_gate() -> None:
    edge = Edge(teacher="vit", student="cnn", carries="temporal", weight=3.0, gate="entropy")
    heard_BQ, scores_BQ = torch.ones(2, 4, dtype=torch.bool), torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    term = temporal_term(edge, 3.0, scores_BQ, torch.tensor([[0.0, 1.0, 0, 0], [0.25] * 4]), heard_BQ)
    logits_BC, y_BC = torch.zeros(2, 3), torch.zeros(2, 3)
    loss, parts = student_loss(logits_BC, y_BC, [term], labels="multi", smoothing=0.0)
    kl_B = temporal_loss(scores_BQ, term.target_BQ, heard_BQ)
    torch.testing.assert_close(loss, math.log(2) + 3.0 * kl_B[0] / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(parts["vit-to-cnn-temporal/weight"], torch.tensor(1.5), rtol=1e-4, atol=0)


def test_padding_counts_as_no_step_also_where_it_was_rolled(tiny: Any, start: Any) -> None:
    shard = start(tiny("demo")).batches.shard(0, 0)
    samples = shard.x_BT.shape[1]
    rate, steps = samples, grid(4)  # of a clip of one second by this rate
    shard.sound_B2 = None
    assert heard_steps(shard, steps, rate=rate).all()
    assert heard_steps(shard, grid(5, 1.25), rate=rate).tolist() == [[True] * 4 + [False]] * len(shard.keys)
    shard.sound_B2 = torch.tensor([[0, samples // 4], [3 * samples // 4, samples // 2]] * (len(shard.keys) // 2))
    shard.mixture = None
    heard = heard_steps(shard, steps, rate=rate)
    assert heard[:2].tolist() == [[True, False, False, False], [True, False, False, True]]


def test_gradient_of_student_and_query(tiny: Any, start: Any) -> None:
    """That of .5 label + .5 KL of logits + 2 KL of profiles; the part of the profiles, computed apart."""
    run = start(tiny("demo", EDGES, ONE_WAY, "models.cnn.optimizer.clip_norm=0.0"))
    for _ in advance(run, until=3):
        pass
    sources = run.pool.enter_phase(run.phases[1], resumed=True)
    state = run.pool.states["cnn"]
    assert sources["vit-to-cnn"] is sources[KEY], "one forward"
    before, head = copy.deepcopy(state.tagger), copy.deepcopy(state.projection(KEY))
    assert head.query.abs().max() > 0, "one step has moved it from its even start"
    shard = run.batches.shard(run.step, 0)
    teacher = sources[KEY].outputs(shard, {})
    found: dict[str, Tensor] = {}
    state.projection(KEY).query.register_post_accumulate_grad_hook(lambda p: found.update(query=p.grad.clone()))
    train_step(run, run.phases[1], sources)

    sequence_BQD = before.outputs(shard.mel(before.front_end)).sequence_BPD
    steps = time_grid(before, sequence_BQD.shape[1])
    a_BQ = on_grid(
        teacher["temporal"], time_grid(run.pool.states["vit"].tagger, teacher["temporal"].shape[1]), steps, "area"
    )
    heard_BQ = heard_steps(shard, steps, rate=before.clip_rate)
    (2 * temporal_loss(head(sequence_BQD), target_profile(a_BQ, heard_BQ), heard_BQ)).mean().backward()
    torch.testing.assert_close(found["query"], head.query.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("student", [(), (SPOTTER,)], ids=["query", "own attention"])
def test_profiles_come_closer(tiny: Any, start: Any, student: tuple[str, ...]) -> None:
    schedule = "schedule={kind='one_way', teachers=['vit'], teacher_steps=2, steps=40}"
    alone = f"edges=[{TEMPORAL.replace('2.0', '20.0')}]"
    run = start(tiny("demo", *student, alone, schedule, "models.cnn.optimizer.lr=1e-2"))
    trained(run)
    losses = [step[f"{KEY}/kd_loss"] for step in values(run) if f"{KEY}/kd_loss" in step]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    parameters = list(run.pool.states["cnn"].projections.parameters())
    assert len(parameters) == (0 if student else 1), "attention of its own needs no query"


@pytest.mark.parametrize("schedule", [ONE_WAY, "schedule={kind='mutual', burn_in=1, steps=4}"])
def test_a_resumed_run_has_the_same_bits(schedule: str, tiny: Any, start: Any) -> None:
    both = EDGES.replace("]", ", {teacher='cnn', student='vit', carries='temporal', gate='entropy', align='linear'}]")
    edges = both if "mutual" in schedule else EDGES
    recipe = tiny("demo", edges, schedule, "train.checkpoint_every=1")
    expected = trained(start(recipe))
    stopped = start(recipe)
    for _ in advance(stopped, until=4):
        pass
    found = trained(start(recipe, checkpoints_of=stopped))
    assert found.keys() == expected.keys()
    assert any(name.startswith("projection.") for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_delivered_student_is_the_plain_one_and_a_control_has_no_query(tiny: Any, start: Any) -> None:
    run, plain = (
        start(tiny("demo", EDGES, ONE_WAY, "compare=true")),
        start(tiny("demo", ONE_WAY.replace("vit", "cnn"), "edges=[{teacher='cnn', student='vit'}]")),
    )
    assert loop(run) == loop(plain) == "done"
    assert run.pool.train_state("cnn_untaught").projections.keys() == set()
    delivered = [
        next(
            path.parent
            for path in (one.session.work_dir.parent / "models").rglob("weights.safetensors")
            if "cnn/" in str(path)
        )
        for one in (run, plain)
    ]
    taught, untaught = (read_tensors(folder, "weights") for folder in delivered)
    assert {name: tensor.shape for name, tensor in taught.items()} == {
        name: tensor.shape for name, tensor in untaught.items()
    }


def test_weights_of_profiles_take_nothing_from_labels() -> None:
    recipe = load_recipe(
        "one-way",
        ["compare=false", "edges=[{teacher='cnn', student='vit', carries='temporal', weight=5.0}]"],
    )
    assert label_learners(plan_phases(recipe)) == ("cnn", "vit")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "mse"}, "loss = 'mse': profiles have 'kl'"),
        ({"view": "clean"}, "view = 'clean': a teacher of profiles must hear what its student hears"),
        ({"gate": "switokd"}, "gate = 'switokd': is for logits; profiles have 'always' or 'entropy'"),
        ({"temperature": 2.0}, "temperature = 2.0: is for edges that carry logits"),
        ({"weight": -1.0}, "weight = -1.0: must be 0 or more"),
        ({"teacher": "store:x"}, "teacher = 'store:x': a store cannot teach profiles so far"),
        ({"carries": "logits", "align": "linear"}, "align = 'linear': is for temporal edges"),
        ({"carries": "logits", "gate": "entropy"}, "gate = 'entropy': is for edges that carry profiles"),
    ],
)
def test_what_is_no_setting_of_such_an_edge(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edge(**{"teacher": "vit", "student": "cnn", "carries": "temporal"} | fields)
