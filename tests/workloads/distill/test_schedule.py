"""The phases of a schedule: which models train, which teach, for how many steps; and edge weights."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from orchestrator.recipes.loader import load_recipe, shipped_names
from workloads.distill.schedule import edge_weights, label_learners, own_steps, plan_phases, smooth_scores

DATA = ["data.root=somewhere", "data.manifest=somewhere.csv"]  # for recipes that require them


def phases_of(name: str, *settings: str):
    return plan_phases(load_recipe(name, ["compare=false", *settings]))


def test_alternate_takes_turns_after_the_burn_in():
    phases = phases_of("demo", "schedule.burn_in=7", "schedule.period=5", "schedule.turns=4")
    assert [(phase.start, phase.steps, phase.trains) for phase in phases] == [
        (0, 7, ("cnn", "vit")),
        (7, 5, ("vit",)),
        (12, 5, ("cnn",)),
        (17, 5, ("vit",)),
        (22, 5, ("cnn",)),
    ]
    assert phases[0].edges == ()
    assert [phase.teachers for phase in phases[1:]] == [("cnn",), ("vit",), ("cnn",), ("vit",)]


def test_alternate_without_burn_in_has_no_empty_phase():
    assert phases_of("demo", "schedule.burn_in=0")[0].trains == ("vit",)


@pytest.mark.parametrize("name", shipped_names())
def test_phases_of_every_shipped_recipe_join_without_gap_and_train_every_model(name):
    recipe = load_recipe(name, DATA)
    phases = plan_phases(recipe)
    assert phases[0].start == 0
    assert all(before.end == after.start for before, after in pairwise(phases))
    assert set(own_steps(phases)) == set(recipe.models)
    assert all(own_steps(phases).values())


def test_a_teacher_that_never_trains_needs_weights():
    with pytest.raises(ValueError, match=r"models.cnn: teaches but never trains; give it weights \(init\)"):
        phases_of("one-way", "schedule.teacher_steps=0")
    assert own_steps(phases_of("one-way", "schedule.teacher_steps=0", "models.cnn.init=weights"))["cnn"] == 0


@pytest.mark.parametrize("name", ["demo", "esc10", "esc10-alternate", "mutual", "one-way", "generations"])
def test_a_control_trains_beside_its_student_from_the_first_phase_that_teaches_it(name):
    plain = phases_of(name, "data.root=x")
    recipe = load_recipe(name, ["data.root=x", "compare=true"])
    controls = {control: model.control_of for control, model in recipe.models.items() if model.control_of}
    assert set(controls.values()) == {edge.student for edge in recipe.edges}
    taught = set()
    for phase, compared in zip(plain, plan_phases(recipe), strict=True):
        taught |= {edge.student for edge in phase.edges}
        beside = {name for name, student in controls.items() if student in phase.trains and student in taught}
        assert set(compared.trains) == {*phase.trains, *beside}
        assert replace(compared, trains=phase.trains) == phase


def test_a_control_with_settings_of_its_own_trains_from_the_first_step():
    own = ("compare=true", "models.vit_untaught.control_of=vit", "models.vit_untaught.optimizer.lr=1e-4")
    steps = own_steps(phases_of("demo", *own, "schedule.burn_in=7"))
    assert steps["vit_untaught"] == steps["vit"]
    assert steps["cnn_untaught"] == steps["cnn"] - 7


def test_one_way_trains_teachers_first_and_freezes_them():
    first, second = phases_of("one-way")
    assert (first.trains, first.edges) == (("cnn",), ())
    assert (second.trains, second.teachers) == (("vit",), ("cnn",))
    (only,) = phases_of("one-way", "schedule.teacher_steps=0", "models.cnn.init=weights.safetensors")
    assert own_steps((only,)) == {"vit": 180, "cnn": 0}


def test_generations_need_only_two_models_at_a_time():
    assert [phase.needs for phase in phases_of("generations")] == [("cnn0",), ("vit1", "cnn0"), ("cnn1", "vit1")]


def test_mutual_begins_a_phase_at_every_exchange():
    phases = phases_of("mutual", "schedule.steps=100", "schedule.exchange=40", "schedule.burn_in=10")
    assert [(phase.start, phase.steps) for phase in phases] == [(0, 10), (10, 40), (50, 40), (90, 20)]


def test_weights_ramp_up_from_the_first_step_with_edges():
    recipe = load_recipe("mutual", ["schedule.burn_in=10", "schedule.ramp=4"])
    phase = plan_phases(recipe)[1]
    weights = [edge_weights(recipe, phase, step, {})["cnn-to-vit"] for step in range(10, 16)]
    assert weights == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_a_store_teaches_from_the_first_step_on_without_a_ramp():
    """It is a finished teacher: what makes models wait for each other is not for it."""
    stored = 'edges=[{teacher="cnn", student="vit", weight=0.5}, {teacher="store:s", student="vit", weight=0.4}]'
    for name in ("mutual", "gated"):
        recipe = load_recipe(name, ["compare=false", "schedule.burn_in=10", "schedule.ramp=4", stored])
        burn_in, phase = plan_phases(recipe)
        assert (burn_in.teachers, phase.teachers) == ((), ("cnn",))
        assert edge_weights(recipe, burn_in, 0, {}) == {"store-to-vit": 0.4}
        weights = edge_weights(recipe, phase, 10, {"cnn": 0.1, "vit": 0.9})
        assert weights["store-to-vit"] == 0.4
        assert weights["cnn-to-vit"] <= 0.125


def test_the_ramp_continues_across_turns():
    plan = ["schedule.burn_in=0", "schedule.period=2", "schedule.turns=3", "schedule.ramp=8", "edges.0.weight=0.5"]
    recipe = load_recipe("demo", plan)
    phases = plan_phases(recipe)
    assert edge_weights(recipe, phases[2], 4, {}) == {"cnn-to-vit": 0.5 * 5 / 8}


def test_gated_weights_follow_the_lead_and_keep_the_floor():
    recipe = load_recipe("gated", ["schedule.ramp=0", "schedule.floor=0.3", "schedule.margin=0.1"])
    phase = plan_phases(recipe)[1]
    assert edge_weights(recipe, phase, 100, {})["cnn-to-vit"] == 0.5  # nothing validated yet
    even = edge_weights(recipe, phase, 100, {"cnn": 0.6, "vit": 0.6})
    assert even == pytest.approx({"cnn-to-vit": 0.5 * 0.65, "vit-to-cnn": 0.2 * 0.65})
    ahead = edge_weights(recipe, phase, 100, {"cnn": 0.7, "vit": 0.6})
    assert ahead["cnn-to-vit"] == pytest.approx(0.5 * (0.3 + 0.7 / (1 + math.exp(-1))))
    far = load_recipe("gated", ["schedule.ramp=0", "schedule.floor=0.3", "schedule.margin=0.0001"])
    assert edge_weights(far, phase, 100, {"cnn": 0.0, "vit": 1.0}) == {"cnn-to-vit": 0.15, "vit-to-cnn": 0.2}
    assert edge_weights(recipe, phase, 100, {"cnn": 0.0, "vit": 1.0})["cnn-to-vit"] == pytest.approx(0.15, abs=1e-4)


def test_scores_are_smoothed_for_gated_only():
    gated = load_recipe("gated", ["schedule.smoothing=0.9"])
    assert smooth_scores(gated, {"cnn": 0.5}, {"cnn": 1.0, "vit": 0.2}) == pytest.approx({"cnn": 0.55, "vit": 0.2})
    assert smooth_scores(load_recipe("demo"), {"cnn": 0.5}, {"cnn": 1.0}) == {"cnn": 1.0}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("demo", 'schedule.order=["cnn"]', "must name each model once: cnn, vit"),
        ("one-way", 'schedule.teachers=["dog"]', "no model named 'dog'; the models are cnn, vit"),
        ("one-way", "schedule.teachers=[]", "name one or more models, and leave a student"),
        ("one-way", 'schedule.teachers=["cnn", "vit"]', "name one or more models, and leave a student"),
        ("one-way", 'schedule.teachers=["cnn", "cnn"]', "must name each model once"),
        ("one-way", "schedule.teacher_steps=0", "models.cnn: teaches but never trains; give it weights (init)"),
        ("one-way", 'schedule.teachers=["vit"]', "cnn-to-vit: never open under schedule one_way"),
        ("generations", 'schedule.order=["cnn0", "vit1"]', "models cnn1: neither train nor teach"),
        ("per-sample", "edges.0.gate=always", "per_sample needs gate = 'better_on_clip'"),
        ("mutual", "edges.0.view=clean", "teaches with its training forward"),
        ("control-shuffled-teacher", "train.shard_size=1", "train.shard_size = 1 leaves teacher logits in place"),
        ("one-way", "edges.0.source=ema", ""),
        ("generations", "edges.0.source=ema", "set models.cnn0.average.kind = 'ema'"),
    ],
)
def test_impossible_schedules_are_refused_with_the_fix(name, setting, message):
    if not message:  # the demo's models keep an average, so this one is valid
        assert phases_of(name, setting)
        return
    with pytest.raises(ValueError, match=r"schedule|edges|models") as caught:
        phases_of(name, setting)
    assert message in str(caught.value)


def test_weights_into_one_student_cannot_exceed_one():
    settings = [
        'edges=[{teacher="cnn0", student="cnn1", weight=0.6}, {teacher="vit1", student="cnn1", weight=0.6}]',
    ]
    with pytest.raises(ValueError, match=r"edges into cnn1: weights sum to 1.2; at most 1"):
        phases_of("generations", *settings)


@pytest.mark.parametrize(
    ("name", "settings", "learners"),
    [
        ("one-way", [], ("cnn", "vit")),
        ("one-way", ["edges.0.weight=1.0"], ("cnn",)),
        ("one-way", ["schedule.teacher_steps=0", "models.cnn.init=cnn.safetensors", "edges.0.weight=1.0"], ()),
        ("mutual", ["schedule.burn_in=0", "edges.0.weight=1.0"], ("cnn",)),
        ("mutual", ["edges.0.weight=1.0"], ("cnn", "vit")),
    ],
)
def test_models_learn_from_labels_unless_their_edges_weigh_1_in_every_phase(name, settings, learners):
    assert label_learners(phases_of(name, *settings)) == learners
