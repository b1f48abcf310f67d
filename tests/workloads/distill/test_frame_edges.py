"""Edges that carry frames, and labels in time: where they belong in a view, their losses, runs that learn from them."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.recipes.loader import load_recipe
from tests.packs import write_clips
from tests.trained_runs import grid, trained, values
from workloads.config.edge import Edge
from workloads.data.shard import Mixture, Shard, ViewKey
from workloads.data.synthetic import events
from workloads.distill.edges import edge_term, frame_term, student_loss
from workloads.distill.frames import (
    FrameLabels,
    counted_steps,
    frame_labels,
    frame_loss,
    frame_target,
    frames_on_grid,
    rolled_frames,
)
from workloads.distill.schedule import label_learners, plan_phases
from workloads.models.profiles import TimeGrid, time_grid
from workloads.run import Run
from workloads.train import advance

MULTI = "data.labels='multi'"
CNN = "models.cnn.arch={family='frame_mn', width=0.1, bn_momentum=0.1}"
VIT = "models.vit.arch={family='vit', dim=16, depth=1, heads=2, patch=8, stride=8, frame_pool='max'}"
EDGE = "{teacher='vit', student='cnn', carries='frames', weight=0.5}"
ONE_WAY = "schedule={kind='one_way', teachers=['vit'], teacher_steps=2, steps=4}"
KEY = "vit-to-cnn-frames"
FRAMES = Edge(teacher="vit", student="cnn", carries="frames", weight=0.9)


def frames_recipe(tiny: Any, *settings: str, edges: str = f"edges=[{EDGE}]", schedule: str = ONE_WAY) -> Any:
    return tiny("demo", MULTI, CNN, VIT, edges, schedule, *settings)


def shard_of(clips: int, samples: int = 100, **fields: Any) -> Shard:
    return Shard(
        keys=tuple(ViewKey(str(clip), 0, 0) for clip in range(clips)),
        x_BT=torch.zeros(clips, samples),
        y_BC=torch.zeros(clips, 2),
        known_BC=torch.ones(clips, 2),
        unmixed_y_BC=torch.zeros(clips, 2),
        **{"masks_B4": torch.zeros(clips, 4)} | fields,
    )


def test_two_terms_are_one_bce_against_the_blended_target() -> None:
    """(1 - w) BCE(z, y) + w BCE(z, sigmoid(s)) = BCE(z, (1 - w) y + w sigmoid(s)), reference/frames.md section 3."""
    torch.manual_seed(0)
    z_BQC, s_BQC = torch.randn(3, 5, 4), 2 * torch.randn(3, 5, 4)
    y_BQC, counted_BQ = torch.randint(2, (3, 5, 4)).float(), torch.rand(3, 5) > 0.3
    edge = replace(FRAMES, loss="bce")
    labels = FrameLabels(z_BQC, y_BQC, torch.ones(3, 4), counted_BQ)
    term = frame_term(edge, 0.9, z_BQC, s_BQC.sigmoid(), counted_BQ)
    nothing_BC = torch.zeros(3, 4)
    loss, parts = student_loss(nothing_BC, nothing_BC, [term], labels="multi", smoothing=0.0, frame_labels=labels)
    blended_BQC = 0.1 * y_BQC + 0.9 * s_BQC.sigmoid()
    clips = [
        F.binary_cross_entropy_with_logits(z_QC[counted_Q], t_QC[counted_Q])
        for z_QC, t_QC, counted_Q in zip(z_BQC, blended_BQC, counted_BQ, strict=True)
    ]
    of_clips = parts["label_loss"]
    torch.testing.assert_close(loss - of_clips, torch.stack(clips).mean(), rtol=0, atol=1e-6)
    assert {"frame_label_loss", f"{KEY}/kd_loss", f"{KEY}/weight"} < parts.keys()


def test_kl_is_bce_less_the_entropy_of_the_teacher() -> None:
    target_BQC, counted_BQ = torch.tensor([[[0.25, 1.0], [0.0, 0.5]]]), torch.ones(1, 2, dtype=torch.bool)
    z_BQC = target_BQC.clamp(1e-6, 1 - 1e-6).logit().requires_grad_()
    for loss in ("kl", "bce"):
        edge = replace(FRAMES, loss=loss)
        term = frame_term(edge, 1.0, z_BQC, target_BQC, counted_BQ)
        total, parts = student_loss(torch.zeros(1, 2), torch.zeros(1, 2), [term], labels="multi", smoothing=0.0)
        (gradient,) = torch.autograd.grad(total, z_BQC)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
        entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log() - torch.tensor(2.0).log()) / 4
        expected = torch.tensor(0.0) if loss == "kl" else entropy
        torch.testing.assert_close(parts[f"{KEY}/kd_loss"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 50])
def test_alignment_keeps_constants_and_steps_that_are_alike(count: int) -> None:
    constant_BPC = torch.full((1, 8, 2), 0.3)
    torch.testing.assert_close(frames_on_grid(constant_BPC, grid(8), grid(count)), torch.full((1, count, 2), 0.3))
    ast = TimeGrid(0.03, 0.1, 8)
    torch.testing.assert_close(frames_on_grid(constant_BPC, ast, grid(count)), torch.full((1, count, 2), 0.3))
    p_BPC = torch.rand(2, count, 3)
    assert torch.equal(frames_on_grid(p_BPC, grid(count), grid(count)), p_BPC)


def test_more_steps_are_averaged_and_fewer_interpolated() -> None:
    peak_BPC = torch.tensor([0.0, 0.0, 0.0, 1.0])[None, :, None]
    assert frames_on_grid(peak_BPC, grid(4), grid(2)).flatten().tolist() == [0.0, 0.5]
    step_BPC = torch.tensor([1.0, 0.0])[None, :, None]
    assert frames_on_grid(step_BPC, grid(2), grid(4)).flatten().tolist() == [1.0, 0.75, 0.25, 0.0]


def test_frames_are_rolled_as_the_clips_are() -> None:
    """A roll by whole steps is exact, one in between goes to the nearest step; each clip by its own."""
    p_BPC = torch.arange(5.0)[None, :, None].expand(3, 5, 1)
    shard = shard_of(3, shift_B=torch.tensor([0, 20, 89]))  # samples of a clip of 100
    rolled = rolled_frames(p_BPC, grid(5), shard, rate=100)[..., 0].tolist()
    assert rolled == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [1, 2, 3, 4, 0]]
    assert rolled_frames(p_BPC, grid(5), shard_of(3), rate=100) is p_BPC
    around = TimeGrid(-0.05, 0.2, 5)  # steps around 0.05, 0.25, ...
    assert rolled_frames(p_BPC[:1], around, shard_of(1, shift_B=torch.tensor([40])), rate=100)[0, :, 0].tolist() == [
        *(3, 4, 0, 1, 2)
    ]


def test_only_a_teacher_that_hears_the_clip_without_augmentation_needs_its_frames_rolled() -> None:
    s_BPC, shard = torch.randn(1, 5, 2), shard_of(1, shift_B=torch.tensor([20]))
    same = frame_target(FRAMES, s_BPC, grid(5), grid(5), shard, rate=100)
    clean = frame_target(replace(FRAMES, view="clean", temperature=2.0), s_BPC, grid(5), grid(5), shard, rate=100)
    assert torch.equal(same, s_BPC.sigmoid())
    assert torch.equal(clean, (s_BPC / 2).sigmoid().roll(1, 1))


def test_padded_and_masked_steps_do_not_count() -> None:
    masks_B4 = torch.tensor([[0.25, 0.3, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    shard = shard_of(2, masks_B4=masks_B4, sound_B2=torch.tensor([[80, 60], [0, 100]]))
    assert counted_steps(shard, grid(5), rate=100).tolist() == [
        [True, False, False, False, True],  # sound from 80 round to 40, the mask covers 25 to 55: the middle at 30
        [True] * 5,
    ]


def test_a_clip_of_which_no_step_counts_adds_nothing() -> None:
    counted_BQ = torch.tensor([[False, False], [True, False]])
    loss_B = frame_loss(torch.zeros(2, 2, 3), torch.ones(2, 2, 3), counted_BQ)
    torch.testing.assert_close(loss_B, torch.tensor([0.0, 0.6931472]))


def by_samples(run: Run, shard: Shard, steps: TimeGrid) -> Tensor:
    """Labels of steps, sample by sample: events of the embedded clips, rolled and mixed as waveforms are."""
    rate, length = run.recipe.rate, shard.x_BT.shape[1]
    columns = run.prepared.dataset.columns
    y_BTC = torch.zeros(len(shard.keys), length, len(columns))
    for row, key in enumerate(shard.keys):
        for event in events(key.clip_id, run.recipe.data):
            y_BTC[row, round(event.onset * rate) : round(event.offset * rate), columns[event.tag]] = 1
        y_BTC[row] = y_BTC[row].roll(int(shard.shift_B[row]), 0)
    bounds = [round(rate * (steps.first + steps.step * number)) for number in range(steps.count + 1)]
    bounds = [max(0, min(length, bound)) for bound in bounds]
    whole = torch.stack([y_BTC[:, a:b].amax(1) for a, b in itertools.pairwise(bounds)], dim=1)
    return shard.mixture.of(whole)


def test_labels_in_time_are_rolled_and_mixed_as_the_sounds_are(tiny: Any, start: Any) -> None:
    views = ["augment.roll=0.5", "augment.mixup=0.6", "models.cnn.frame_labels=true"]
    run = start(frames_recipe(tiny, *views))
    tagger = run.pool.train_state("cnn").tagger
    for step in range(3):
        shard = run.batches.shard(step, 0)
        for steps in (grid(25), TimeGrid(-0.015, 0.04, 25), time_grid(tagger, 25)):
            found = frame_labels(torch.zeros(8, steps.count, 10), shard, steps, rate=run.recipe.rate)
            expected = by_samples(run, shard, steps)
            torch.testing.assert_close(found.y_BQC, expected, rtol=0, atol=1e-6)
            assert torch.equal(found.known_BC, torch.ones(8, 10))
            assert 0.05 < expected.mean() < 0.4
        torch.testing.assert_close(found.y_BQC.amax(1), shard.y_BC, rtol=0, atol=1e-6)


def test_of_a_mixture_with_a_clip_without_events_the_other_counts_by_its_weight(tiny: Any, start: Any) -> None:
    run = start(frames_recipe(tiny, "augment.mixup=1.0", "models.cnn.frame_labels=true"))
    known = run.batches.shard(0, 0)
    lost = known.clip_ids[0]
    run.batches.clips = [
        replace(clip, events=None) if clip.clip_id == lost else clip for clip in run.prepared.splits.train
    ]
    shard = run.batches.shard(0, 0)
    labels = frame_labels(torch.zeros(8, 25, 10), shard, grid(25), rate=run.recipe.rate)
    mixture: Mixture = shard.mixture
    weight, partner = mixture.weight_B[0], int(mixture.partner_B[0])
    torch.testing.assert_close(labels.known_BC[0], (1 - weight).expand(10))
    alone = replace(shard.events, weight_B=torch.ones(8))
    starts = torch.arange(25) * 640
    y_BQC, _ = alone.targets(starts, starts + 640)
    torch.testing.assert_close(labels.y_BQC[0], y_BQC[partner])


def test_weight_0_is_training_without_the_edge(tiny: Any, start: Any) -> None:
    """Both with and without labels in time; the logits edge keeps the teacher in the run."""
    logits = "{teacher='vit', student='cnn', weight=0.3}"
    for labels in ("models.cnn.frame_labels=false", "models.cnn.frame_labels=true"):
        plain = trained(start(frames_recipe(tiny, labels, edges=f"edges=[{logits}]")))
        closed = EDGE.replace("weight=0.5", "weight=0.0")
        found = trained(start(frames_recipe(tiny, labels, edges=f"edges=[{logits}, {closed}]")))
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("view", ["same", "clean"])
def test_a_step_has_the_gradient_of_its_own_terms(view: str, tiny: Any, start: Any, tmp_path: Path) -> None:
    """.7 label + .3 KL of logits + .5 KL of frames, with steps of 80 ms for steps of 40, on clips of unequal length."""
    import copy

    from workloads.train_step import train_step

    audio = write_clips(tmp_path / "audio", 60, seconds=(0.2, 1.2))
    edges = f"edges=[{{teacher='vit', student='cnn', weight=0.3, view='{view}'}}, {EDGE[:-1]}, view='{view}'}}]"
    own = ["augment.roll=0.4", "models.cnn.optimizer.clip_norm=0.0", "data.labels='multi'"]
    run = start(frames_recipe(tiny, *audio, *own, edges=edges))
    for _ in advance(run, until=3):
        pass
    sources = run.pool.enter_phase(run.phases[1], step=run.phases[1].start + 1)
    assert sources["vit-to-cnn"] is sources[KEY], "one forward"
    state, teacher = run.pool.states["cnn"], run.pool.states["vit"].tagger
    before = copy.deepcopy(state.tagger)
    shard = run.batches.shard(run.step, 0, with_clean_view=True)
    heard = shard.clean() if view == "clean" else shard
    with torch.no_grad():
        said = teacher.outputs(heard.mel(teacher.front_end))
    found: dict[str, Tensor] = {}
    for name, parameter in state.tagger.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: found.update({name: p.grad.clone()}))
    recorded = train_step(run, run.phases[1], sources, log_metrics=True)

    outputs = before.outputs(shard.mel(before.front_end))
    steps, of = time_grid(before, outputs.frames_BPC.shape[1]), time_grid(teacher, said.frames_BPC.shape[1])
    assert steps.count > of.count
    p_BPC = said.frames_BPC.sigmoid()
    p_BPC = rolled_frames(p_BPC, of, shard, rate=before.clip_rate) if view == "clean" else p_BPC
    target_BQC, counted_BQ = frames_on_grid(p_BPC, of, steps), counted_steps(shard, steps, rate=before.clip_rate)
    assert not counted_BQ.all()
    term = frame_term(run.recipe.edges[1], 0.5, outputs.frames_BPC, target_BQC, counted_BQ)
    terms = [edge_term(run.recipe.edges[0], 0.3, said.logits_BC), term]
    smoothing = run.recipe.train.label_smoothing
    loss, parts = student_loss(outputs.logits_BC, shard.y_BC, terms, labels="multi", smoothing=smoothing)
    assert recorded["cnn/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert recorded[f"{KEY}/kd_loss"] == pytest.approx(parts[f"{KEY}/kd_loss"].item(), rel=1e-4)
    loss.backward()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("source", ["live", "snapshot", "ema"])
@pytest.mark.parametrize("schedule", [ONE_WAY, "schedule={kind='mutual', burn_in=1, steps=4}"])
def test_a_resumed_run_has_the_same_bits(schedule: str, source: str, tiny: Any, start: Any) -> None:
    back = ", {teacher='cnn', student='vit', carries='frames', loss='bce', temperature=2.0}"
    taught = EDGE[:-1] + f", source='{source}'}}"
    edges = f"edges=[{taught}{back if 'mutual' in schedule else ''}]"
    own = ["models.vit.average={kind='ema', decay=0.9}", "models.cnn.frame_labels=true", "train.checkpoint_every=1"]
    recipe = frames_recipe(tiny, *own, edges=edges, schedule=schedule)
    expected = trained(start(recipe))
    stopped = start(recipe)
    for _ in advance(stopped, until=4):
        pass
    found = trained(start(recipe, checkpoints_of=stopped))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_student_comes_closer_to_the_frames_of_its_teacher(tiny: Any, start: Any) -> None:
    schedule = "schedule={kind='one_way', teachers=['vit'], teacher_steps=40, steps=30}"
    own = ["models.vit.frame_labels=true", "models.vit.optimizer.lr=1e-2", "models.cnn.optimizer.lr=1e-2"]
    run = start(frames_recipe(tiny, *own, edges=f"edges=[{EDGE.replace('0.5', '5.0')}]", schedule=schedule))
    trained(run)
    losses = [step[f"{KEY}/kd_loss"] for step in values(run) if f"{KEY}/kd_loss" in step]
    in_time = [step["vit/frame_label_loss"] for step in values(run) if "vit/frame_label_loss" in step]
    assert (len(losses), len(in_time)) == (30, 40)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert sum(in_time[-5:]) < 0.8 * sum(in_time[:5]), "0.68 is what the share of active steps gives"


def test_frames_take_nothing_from_labels_of_clips(tiny: Any) -> None:
    recipe = frames_recipe(tiny, edges=f"edges=[{EDGE.replace('0.5', '7.0')}]")
    assert label_learners(plan_phases(recipe)) == ("vit", "cnn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.labels='single'"], r"edges vit-to-cnn-frames: carries = 'frames': needs data.labels = 'multi'"),
        (["data.labels='single'", "edges.0.loss='bce'"], r"carries = 'frames': needs data.labels = 'multi'"),
        (["models.vit.arch.frame_pool='none'"], r"carries = 'frames': vit \(vit\) has no logits in time; use frame_mn"),
        (["models.cnn.arch={family='mn'}", "models.cnn.frame_labels=true"], r"models.cnn.frame_labels = true: cnn"),
        (
            ["models.cnn.arch.frame_pool='own_head'"],
            r"own_head': the head of its steps learns from labels in time only",
        ),
        (["models.cnn.frame_labels=true", "train.compile=true"], r"train.compile = true: not with edges that carry"),
    ],
)
def test_recipes_that_cannot_learn_frames_are_refused(settings: list[str], message: str, tiny: Any) -> None:
    with pytest.raises(ValueError, match=message):
        frames_recipe(tiny, *settings)


def test_a_clean_teacher_of_clips_that_are_rolled_and_mixed_is_refused(tiny: Any) -> None:
    clean = f"edges=[{EDGE[:-1]}, view='clean'}}]"
    with pytest.raises(ValueError, match="cannot be followed into a mixture of rolled ones"):
        frames_recipe(tiny, "augment.roll=0.1", "augment.mixup=0.5", edges=clean)


def test_labels_in_time_need_events(tiny: Any, start: Any, tmp_path: Path) -> None:
    audio = write_clips(tmp_path / "audio", 60, seconds=(0.2, 1.2))
    with pytest.raises(ValueError, match=r"models.cnn.frame_labels = true: of no training clip is known when"):
        start(frames_recipe(tiny, *audio, "data.labels='multi'", "models.cnn.frame_labels=true"))


def test_weights_of_frames_and_labels_in_time_sum_to_1(tiny: Any) -> None:
    recipe = frames_recipe(tiny, "models.cnn.frame_labels=true", edges=f"edges=[{EDGE.replace('0.5', '1.5')}]")
    with pytest.raises(ValueError, match=r"edges into cnn that carry frames: weights sum to 1\.5"):
        plan_phases(recipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "mse"}, "loss = 'mse': is for embeddings; frames have 'kl' or 'bce'"),
        ({"gate": "switokd"}, "gate = 'switokd': is for edges that carry logits"),
        ({"tau_mode": "both"}, "tau_mode = 'both': is for edges that carry logits"),
        ({"weight": -1.0}, "weight = -1.0: must be 0 or more"),
        ({"teacher": "store:x", "missing": "labels"}, "missing = 'labels': is for edges that carry logits"),
    ],
)
def test_what_is_no_setting_of_such_an_edge(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edge(**{"teacher": "vit", "student": "cnn", "carries": "frames"} | fields)


def test_a_shipped_recipe_takes_frames() -> None:
    arch = "models.vit.arch.frame_pool='linear_softmax'"
    recipe = load_recipe("one-way", ["compare=false", arch, "models.vit.frame_labels=true"])
    assert recipe.models["vit"].frame_labels
