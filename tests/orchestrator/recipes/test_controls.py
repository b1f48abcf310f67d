"""Which models of a recipe get an untaught control."""

import pytest

from orchestrator.recipes.loader import load_recipe, parse, resolve
from orchestrator.search.trial_spec import search_plan
from workloads.config.controls import controls_of
from workloads.distill.schedule import own_steps, plan_phases

BOTH = {"cnn": "cnn_untaught", "vit": "vit_untaught"}


def test_the_demo_compares_both_students_as_it_is_shipped():
    recipe = load_recipe("demo")
    assert controls_of(recipe) == BOTH
    steps = own_steps(plan_phases(recipe))
    assert steps.keys() == {*BOTH, *BOTH.values()}
    assert all(0 < steps[control] <= steps[student] for student, control in BOTH.items())


def test_every_student_gets_a_control_with_its_settings():
    recipe = load_recipe("demo", ["compare=true", "models.vit.optimizer.lr=0.5"])
    assert controls_of(recipe) == BOTH
    assert list(recipe.models) == ["cnn", "vit", "cnn_untaught", "vit_untaught"]
    assert recipe.models["vit_untaught"].optimizer.lr == 0.5
    assert parse(resolve(recipe)) == recipe


def test_a_model_that_only_teaches_needs_none():
    assert controls_of(load_recipe("one-way", ["compare=true"])) == {"vit": "vit_untaught"}
    assert [*controls_of(load_recipe("generations", ["compare=true"]))] == ["vit1", "cnn1"]


def test_a_control_may_have_settings_of_its_own():
    own = ["models.alone.control_of=vit", "models.alone.optimizer.weight_decay=0.3", "models.vit.optimizer.lr=0.5"]
    recipe = load_recipe("demo", ["compare=true", *own])
    assert controls_of(recipe) == BOTH | {"vit": "alone"}
    optimizer = recipe.models["alone"].optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (0.5, 0.3)
    assert recipe.models["alone"].arch == recipe.models["vit"].arch


def test_without_compare_there_are_no_controls():
    compared = resolve(load_recipe("demo", ["compare=true"]))
    assert list(parse(compared | {"compare": False}).models) == ["cnn", "vit"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["edges=[]"], "the recipe has no edges, so nothing is taught; set compare = false"),
        (["train.score_test=false"], "needs the test scores that train.score_test = false leaves out"),
        (["models.vit_untaught.init=x"], "models.vit_untaught: compare = true calls the control of vit so; rename"),
        (["compare=True"], "compare = 'True': must be true or false"),
        (["compare=1"], "compare = 1: must be true or false"),
        (["models.alone.control_of=vitt"], "control_of = 'vitt': must be a model that an edge leads to: cnn, vit"),
        (['models.alone.control_of=["vit"]'], r"control_of = \['vit'\]: must be a model that an edge"),
        (["models.a.control_of=vit", "models.b.control_of=vit"], "it has two controls; keep one"),
        (['models.alone={control_of="vit", arch={family="mn", width=0.1}}'], "a control has the arch, front_end and"),
        (["models.alone.control_of=vit", "edges.0.teacher=alone"], "a control neither teaches nor is taught"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("demo", ["compare=true", *settings])


def test_trials_of_a_search_have_no_controls():
    """The winner has one of its own."""
    recipe = load_recipe("search-demo", ["compare=true"])
    assert controls_of(recipe) == BOTH
    assert controls_of(search_plan(recipe).recipe) == {}
