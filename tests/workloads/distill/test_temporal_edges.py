"""Edges that carry profiles: the student's steps get the teacher's weights by seconds, and labels lose nothing."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.recipes.loader import load_recipe
from tests.packs import write_clips
from tests.trained_runs import grid, trained, values
from workloads.config.edge import Edge
from workloads.data.augment import sound_mask
from workloads.data.shard import Shard
from workloads.distill import sources as sources_module
from workloads.distill.edges import edge_term, student_loss, temporal_term
from workloads.distill.schedule import label_learners, plan_phases
from workloads.distill.temporal import flatness, heard_steps, on_grid, target_profile, temporal_loss
from workloads.models.profiles import TimeGrid, time_grid
from workloads.runtime.checkpoint import read_tensors
from workloads.train import advance, loop
from workloads.train_step import train_step

TEMPORAL = "{teacher='vit', student='cnn', carries='temporal', weight=2.0}"
EDGES = f"edges=[{{teacher='vit', student='cnn', weight=0.5}}, {TEMPORAL}]"
ONE_WAY = "schedule={kind='one_way', teachers=['vit'], teacher_steps=2, steps=4}"
KEY = "vit-to-cnn-temporal"
PLAIN = ("models.cnn.optimizer.clip_norm=0.0", "models.cnn.arch.dropout=0.0")
SPOTTER = "models.cnn={arch={family='ondevice', variant='att_rnn'}, front_end={kind='logmel40'}}"


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
    """The teacher's two steps last from 0.5 to 1.5 s, the student's four from 0 to 2 s: its ends go on."""
    p_BP = torch.tensor([[0.25, 0.75]])
    assert on_grid(p_BP, grid(2, 1.0, first=0.5), grid(4, 2.0), "area").tolist() == [[0.25, 0.25, 0.75, 0.75]]


@pytest.mark.parametrize("align", ["area", "linear"])
def test_an_even_profile_stays_even_where_the_teacher_has_no_steps(align: Any) -> None:
    """AST's patches begin 30 ms after the clip and end before it does; there the nearest step counts."""
    even_BQ = on_grid(torch.full((1, 9), 1 / 9), TimeGrid(0.03, 0.1, 9), grid(50), align)
    torch.testing.assert_close(even_BQ / even_BQ.sum(), torch.full((1, 50), 0.02))


@pytest.mark.parametrize("align", ["area", "linear"])
@pytest.mark.parametrize("count", [3, 25, 60])
def test_targets_sum_to_1_and_are_0_where_there_is_no_sound(count: int, align: Any) -> None:
    """reference/tkd.md 9.6. Where all of a teacher's weight lies in padding every step with sound counts alike."""
    p_BP = torch.rand(4, 25, generator=torch.Generator().manual_seed(0))
    p_BP[3] = (torch.arange(25) == 24).float()
    heard_BQ = torch.arange(count) < torch.tensor([[count], [count - 1], [1], [2]])
    target_BQ = target_profile(on_grid(p_BP, grid(25), grid(count), align), heard_BQ)
    torch.testing.assert_close(target_BQ.sum(1), torch.ones(4))
    assert torch.equal(target_BQ > 0, heard_BQ)
    assert target_BQ[2].tolist() == [1.0] + [0.0] * (count - 1)
    if count > 3:
        assert target_BQ[3, :2].tolist() == [0.5, 0.5]


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
    single_BQ = torch.tensor([[True, False, False, False]])
    assert flatness(target_profile(torch.ones(1, 4), single_BQ), single_BQ).tolist() == [1.0], "it does not say when"


def test_flat_profiles_weigh_nothing_under_the_entropy_gate() -> None:
    edge = Edge(teacher="vit", student="cnn", carries="temporal", weight=3.0, gate="entropy")
    heard_BQ, scores_BQ = torch.ones(2, 4, dtype=torch.bool), torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    term = temporal_term(edge, 3.0, scores_BQ, torch.tensor([[0.0, 1.0, 0, 0], [0.25] * 4]), heard_BQ)
    logits_BC, y_BC = torch.zeros(2, 3), torch.zeros(2, 3)
    loss, parts = student_loss(logits_BC, y_BC, [term], labels="multi", smoothing=0.0)
    kl_B = temporal_loss(scores_BQ, term.target_BQ, heard_BQ)
    torch.testing.assert_close(loss, math.log(2) + 3.0 * kl_B[0] / 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(parts["vit-to-cnn-temporal/weight"], torch.tensor(1.5), rtol=1e-4, atol=0)


def by_samples(shard: Shard, steps: TimeGrid, rate: int) -> Tensor:
    """The same as `heard_steps`, sample by sample."""
    length = shard.x_BT.shape[1]
    sound_BT = torch.zeros(len(shard.keys), length, dtype=torch.bool)
    for sound_B2 in shard.sounds():
        sound_BT |= sound_mask(sound_B2, length)
    edges = [round(rate * (steps.first + steps.step * number)) for number in range(steps.count + 1)]
    ends = [(max(0, min(length, start)), max(0, min(length, end))) for start, end in itertools.pairwise(edges)]
    return torch.stack([sound_BT[:, start:end].any(1) for start, end in ends], dim=1)


@pytest.mark.parametrize("mixup_on", ["waveform", "mel"])
def test_padding_counts_as_no_step_also_where_it_was_rolled_or_mixed(
    mixup_on: str, tiny: Any, start: Any, tmp_path: Path
) -> None:
    audio = write_clips(tmp_path / "audio", 60, seconds=(0.2, 1.2))
    views = ["augment.roll=0.5", "augment.mixup=0.7", f"augment.mixup_on={mixup_on}"]
    own = ["models.vit.front_end.kind=logmel64", "models.cnn.front_end.kind=logmel64"] if mixup_on == "mel" else []
    run = start(tiny("demo", *audio, *views, *own))
    rate, some = run.prepared.cache.rate, 0
    for index in range(1):
        for step in range(4):
            shard = run.batches.shard(step, index)
            for steps in (grid(4), grid(50), TimeGrid(0.03, 0.1, 9), TimeGrid(-0.155, 0.32, 4)):
                heard_BQ = heard_steps(shard, steps, rate=rate)
                assert torch.equal(heard_BQ, by_samples(shard, steps, rate))
                some += int((~heard_BQ).sum())
    assert some > 100


def test_gradients_and_losses_of_a_step_on_clips_of_unequal_length(tiny: Any, start: Any, tmp_path: Path) -> None:
    """.5 label + .5 KL of logits + 2 KL of profiles, computed apart; front ends of 32 and 16 kHz, clips at 32 kHz."""
    audio = write_clips(tmp_path / "audio", 60, seconds=(0.2, 1.2))
    front_end = "models.cnn.front_end.kind=efficientat128"
    run = start(tiny("demo", *audio, front_end, EDGES, ONE_WAY, *PLAIN))
    for _ in advance(run, until=3):
        pass
    sources = run.pool.enter_phase(run.phases[1], step=run.phases[1].start + 1)
    state = run.pool.states["cnn"]
    assert sources["vit-to-cnn"] is sources[KEY], "one forward"
    before, head = copy.deepcopy(state.tagger), copy.deepcopy(state.projection(KEY))
    assert before.clip_rate == 32_000
    assert head.query.abs().max() > 0, "one step has moved it from its even start"
    shard = run.batches.shard(run.step, 0)
    teacher = sources[KEY].outputs(shard, {})
    found: dict[str, Tensor] = {}
    for module, prefix in ((state.tagger, ""), (state.projection(KEY), "head.")):
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=prefix + name: found.update({name: p.grad.clone()})
            )
    values = train_step(run, run.phases[1], sources, log_metrics=True)

    outputs = before.outputs(shard.mel(before.front_end))
    steps = time_grid(before, outputs.sequence_BPD.shape[1])
    of_teacher = time_grid(run.pool.states["vit"].tagger, teacher["temporal"].shape[1])
    heard_BQ = by_samples(shard, steps, before.clip_rate)
    assert not heard_BQ.all()
    target_BQ = target_profile(on_grid(teacher["temporal"], of_teacher, steps, "area"), heard_BQ)
    temporal_B = temporal_loss(head(outputs.sequence_BPD), target_BQ, heard_BQ)
    assert values[f"{KEY}/kd_loss"] == pytest.approx(temporal_B.mean().item(), rel=1e-4)
    plain, _ = student_loss(
        outputs.logits_BC,
        shard.y_BC,
        [edge_term(run.recipe.edges[0], 0.5, teacher["logits"])],
        labels="single",
        smoothing=run.recipe.train.label_smoothing,
        known_BC=shard.known_BC,
    )
    (plain + 2 * temporal_B.mean()).backward()
    torch.testing.assert_close(found.pop("head.query"), head.query.grad, rtol=1e-3, atol=1e-7)
    expected = {name: parameter.grad for name, parameter in before.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-2, atol=1e-5)


def test_a_teacher_that_does_not_teach_yet_is_not_asked_when_it_listens(
    tiny: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = sources_module.outputs_and_profile

    def counted(tagger: Any, mel_BMF: Tensor) -> Any:
        asked.append(tagger.training)
        return real(tagger, mel_BMF)

    monkeypatch.setattr(sources_module, "outputs_and_profile", counted)
    trained(start(tiny("demo", EDGES, ONE_WAY)))
    assert asked == [False] * 4


def test_a_clip_that_is_one_step_of_the_student_is_refused(tiny: Any, start: Any) -> None:
    run = start(tiny("demo", EDGES, ONE_WAY, "data.clip_seconds=0.3"))
    with pytest.raises(ValueError, match=r"edges vit-to-cnn-temporal: .* a clip of 0\.3 s is a single step in time"):
        run.pool.enter_phase(run.phases[1])


def test_attention_of_its_own_may_be_taught_after_it_has_learned_alone(tiny: Any, start: Any) -> None:
    """Then most of its weights are exactly 0 in fp32."""
    alone = f"edges=[{TEMPORAL}]"
    run = start(
        tiny("demo", SPOTTER, alone, "schedule={kind='mutual', burn_in=60, steps=8}", "models.cnn.optimizer.lr=3e-3")
    )
    trained(run)
    assert sum(f"{KEY}/kd_loss" in step for step in values(run)) == 8


@pytest.mark.parametrize(
    ("teacher", "student", "queries"), [("cnn", "vit", 1), ("vit", "cnn", 0)], ids=["query", "own attention"]
)
def test_profiles_come_closer(tiny: Any, start: Any, teacher: str, student: str, queries: int) -> None:
    schedule = f"schedule={{kind='one_way', teachers=['{teacher}'], teacher_steps=2, steps=40}}"
    edge = f"edges=[{{teacher='{teacher}', student='{student}', carries='temporal', weight=20.0}}]"
    run = start(tiny("demo", SPOTTER, edge, schedule, f"models.{student}.optimizer.lr=1e-2"))
    trained(run, student)
    key = f"{teacher}-to-{student}-temporal/kd_loss"
    losses = [step[key] for step in values(run) if key in step]
    assert len(losses) == 40
    assert sum(losses[:5]) > 0.01, "there is something to learn"
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert len(list(run.pool.states[student].projections.parameters())) == queries, "own attention needs none"


@pytest.mark.parametrize("source", ["live", "snapshot", "ema"])
@pytest.mark.parametrize("schedule", [ONE_WAY, "schedule={kind='mutual', burn_in=1, steps=4}"])
def test_a_resumed_run_has_the_same_bits(schedule: str, source: str, tiny: Any, start: Any) -> None:
    both = EDGES.replace("]", ", {teacher='cnn', student='vit', carries='temporal', gate='entropy', align='linear'}]")
    edges = (both if "mutual" in schedule else EDGES).replace("weight=2.0", f"weight=2.0, source='{source}'")
    average = "models.vit.average={kind='ema', decay=0.9}"
    recipe = tiny("demo", edges, schedule, average, "train.checkpoint_every=1")
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
        ({"teacher": "store:x", "view": "other"}, "view = 'other': profiles of other views do not say when"),
        ({"carries": "logits", "align": "linear"}, "align = 'linear': is for temporal edges"),
        ({"carries": "logits", "gate": "entropy"}, "gate = 'entropy': is for edges that carry profiles"),
    ],
)
def test_what_is_no_setting_of_such_an_edge(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edge(**{"teacher": "vit", "student": "cnn", "carries": "temporal"} | fields)
