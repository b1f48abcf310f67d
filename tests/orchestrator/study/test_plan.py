"""A study's plan: which methods there are, equal own steps, what is left out, what is refused. Trains nothing."""

import json
from dataclasses import replace

import pytest

from orchestrator.recipes.loader import load_study
from orchestrator.study.plan import Member, changed, load_plan, plan_of, plan_study, run_id
from workloads.config.study import Method, Study
from workloads.distill.schedule import own_steps, plan_phases


def study(**fields):
    return Study(
        **{"name": "s", "recipe": "demo", "folds": (1, 2), "seeds": (0, 1), "steps": 12, "burn_in": 4} | fields
    )


def schedule_of(plan, name):
    return plan.methods[name].recipe.schedule


def test_the_standard_methods_and_whom_they_teach():
    plan = plan_study(study(periods=(2, 8)))
    both = ("cnn", "vit")
    assert {name: method.students for name, method in plan.methods.items()} == {
        "plain": (),
        "one_way-cnn-to-vit": ("vit",),
        "one_way-vit-to-cnn": ("cnn",),
        "generations": both,
        **dict.fromkeys(("alternate-2", "alternate-8", "mutual", "gated", "per_sample"), both),
    }
    assert plan.left_out == {}
    assert len(plan.members) == 9 * 2 * 2
    assert plan.members[:9] == [Member(name, 1, 0) for name in plan.methods], "every method before the next fold"
    assert "9 methods x 2 test folds (1, 2) x 2 seeds (0, 1) = 36 runs, 12 own steps" in plan.stopping_rule()


def test_every_model_takes_as_many_own_steps_in_every_method():
    for name, method in plan_study(study(periods=(1, 2, 4, 8))).methods.items():
        assert set(own_steps(plan_phases(method.recipe)).values()) == {12}, name


def test_edges_are_those_of_the_recipe_where_it_has_them():
    plan = plan_study(study())
    assert [(edge.key, edge.weight, edge.source) for edge in plan.methods["mutual"].recipe.edges] == [
        ("cnn-to-vit", 0.2, "ema"),
        ("vit-to-cnn", 0.3, "ema"),
    ]
    assert {edge.gate for edge in plan.methods["per_sample"].recipe.edges} == {"better_on_clip"}
    alone = plan_study(study(recipe="one-way", weight=0.1))
    assert [edge.weight for edge in alone.methods["mutual"].recipe.edges] == [0.5, 0.1], "one has no edge back"


def test_a_model_s_last_generation_has_its_name_and_so_the_control_s_first_weights():
    method = plan_study(study(generations=("vit", "cnn", "vit", "cnn"))).methods["generations"]
    assert list(method.recipe.models) == ["vit_1", "cnn_1", "vit", "cnn"]
    assert [edge.key for edge in method.recipe.edges] == ["vit_1-to-cnn_1", "cnn_1-to-vit", "vit-to-cnn"]
    assert method.students == ("cnn", "vit")
    assert method.recipe.edges[0].weight == 0.3


def test_what_the_models_cannot_make_is_left_out_with_the_reason():
    alone = plan_study(study(recipe="offline-demo", standard=("mutual", "one_way")))
    reason = "needs two models that learn; recipe 'offline-demo' has one"
    assert alone.left_out == {"mutual": reason, "one_way": reason}
    like = plan_study(study(recipe="offline-demo", methods={"a": Method(like="alternate-3")}))
    assert like.left_out["a"] == "like = 'alternate-3': is left out"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"periods": (2, 3)}, "periods: 3 does not divide the 8 steps .*; name periods that do"),
        ({"generations": ("cnn", "ast")}, "no model named 'ast'; the models are cnn, vit"),
        ({"methods": {"mutual": Method()}}, "methods.mutual: is the name of a standard method of this study"),
        ({"seeds": tuple(range(1000))}, "study s: 8 methods make 16,000 runs; at most 10,000"),
        ({"settings": {"train": {"seed": 3}}}, "settings: train.seed: is not of the recipe .* has `seeds`"),
        ({"settings": {"schedule": {"burn_in": 3}}}, "settings: schedule.burn_in: .* has `steps`, `burn_in`"),
        ({"methods": {"a": Method(settings={"data": {"test_fold": 3}})}}, "methods.a.settings: data.test_fold: "),
        ({"methods": {"a": Method(settings={"schedule": {"steps": 999}})}}, "methods.a: models.cnn takes 999 own"),
    ],
)
def test_mistakes_in_a_study_s_keys_leave_nothing_out(fields, message):
    with pytest.raises(ValueError, match=message):
        plan_study(study(**fields))


@pytest.mark.parametrize("setting", ["train.seed=1", "data.test_fold=2", "data={test_fold=2}", "schedule.steps=9"])
def test_what_the_study_fixes_cannot_be_set(setting, tmp_path):
    stored = tmp_path / "study.json"
    stored.write_text(json.dumps({"study_id": "s", **plan_study(study()).as_json()}))
    for load in (lambda: plan_study(study(), [setting]), lambda: load_plan(str(stored), [setting])):
        with pytest.raises(ValueError, match=r"--set [a-z_.]+: is not of the recipe but of the study: "):
            load()


def test_a_method_that_teaches_nobody_is_compared_in_all_its_models():
    own = Method(settings={"train": {"tf32": False}})
    method = plan_study(study(methods={"no_tf32": own})).methods["no_tf32"]
    assert method.students == ("cnn", "vit")


def test_a_stored_plan_that_was_edited_is_checked_again():
    values = plan_study(study(standard=("mutual",))).as_json()
    values["methods"]["mutual"]["recipe"]["schedule"]["steps"] = 9
    with pytest.raises(
        ValueError, match=r"methods.mutual: models.cnn takes 13 own steps, and the study has steps = 12"
    ):
        plan_of(values)
    del values["methods"]["plain"]
    with pytest.raises(ValueError, match="methods: must have plain"):
        plan_of(values)


def test_a_method_of_the_study_s_own_merges_into_another_one():
    edge = {"teacher": "cnn", "student": "vit", "carries": "embedding", "loss": "cosine"}
    own = Method(like="one_way-cnn-to-vit", about="what it is", settings={"edges": [edge], "train": {"tf32": False}})
    plan = plan_study(study(standard=("one_way",), methods={"embedding": own}))
    method = plan.methods["embedding"]
    assert (method.recipe.about, method.students) == ("what it is", ("vit",))
    assert [edge.key for edge in method.recipe.edges] == ["cnn-to-vit-embedding"]
    assert method.recipe.schedule == schedule_of(plan, "one_way-cnn-to-vit")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(like="mutal"), r"methods.a.like = 'mutal': must be a method named before it: plain, mutual"),
        (Method(settings={"train": {"sed": 1}}), "methods.a: train.sed: unknown key"),
        (
            Method(like="mutual", settings={"schedule": {"steps": 9}}),
            "methods.a: models.cnn takes 13 own steps, and the study has steps = 12",
        ),
    ],
)
def test_mistakes_in_a_method_of_the_study_s_own(method, message):
    with pytest.raises(ValueError, match=message):
        plan_study(study(standard=("mutual",), methods={"a": method}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": ()}, r"folds = \(\): must name a test fold or more"),
        ({"seeds": (1, 1)}, "seeds = .*: must name each seed once"),
        ({"burn_in": 12}, "burn_in = 12: must be below steps = 12"),
        ({"name": "a b"}, "name = 'a b': must be 1 to 60 small letters"),
        ({"methods": {"plain": Method()}}, "methods.plain: this name is the study's own"),
    ],
)
def test_mistakes_in_a_study(fields, message):
    with pytest.raises(ValueError, match=message):
        study(**fields)


def test_settings_change_the_recipe_of_all_methods_the_command_s_last():
    plan = plan_study(
        study(settings={"data": {"synthetic_clips": 100}, "train": {"log_every": 3}}), ["train.shard_size=4"]
    )
    for method in plan.methods.values():
        assert (method.recipe.data.synthetic_clips, method.recipe.train.shard_size) == (100, 4)
    recipe = plan.recipe(Member("mutual", 2, 7))
    assert (recipe.data.test_fold, recipe.train.seed, recipe.name) == (2, 7, "s-mutual")
    assert run_id("first", Member("mutual", 2, 7)) == "first-mutual-fold2-seed7"


def test_a_stored_plan_is_read_as_it_was_and_differences_are_named():
    plan = plan_study(study())
    assert plan_of(plan.as_json()) == plan
    assert list(changed(plan, plan_of(plan.as_json()))) == []
    longer = plan_study(study(seeds=(0, 1, 2)))
    assert next(changed(longer, plan)) == "seeds: (0, 1), now (0, 1, 2)"
    fewer = replace(plan, methods={name: plan.methods[name] for name in ("plain", "mutual")})
    assert next(changed(fewer, plan)).startswith("methods: plain, one_way-cnn-to-vit, ")
    other = plan_study(study(settings={"data": {"val_share": 0.2}}))
    assert next(changed(other, plan)) == "data.val_share of plain: 0.1, now 0.2"
    moved = plan_study(study(settings={"data": {"cache": "/elsewhere"}}))
    assert list(changed(moved, plan)) == [], "where the clips lie may change"


def test_a_stored_plan_is_run_from_its_file_alone(tmp_path):
    """As a job does, where the recipe that the study names is not."""
    plan, file = plan_study(study()), tmp_path / "study.json"
    file.write_text(json.dumps({"study_id": "s", **plan.as_json()}))
    assert load_plan(str(file)) == plan
    moved = load_plan(str(file), ["data.cache=/elsewhere"])
    assert {method.recipe.data.cache for method in moved.methods.values()} == {"/elsewhere"}
    assert load_plan("study-demo") == plan_study(load_study("study-demo"))
    file.write_text('{"study": 1}')
    with pytest.raises(ValueError, match=r"study.json: study"):
        load_plan(str(file))


@pytest.mark.parametrize(
    ("name", "runs"), [("study-demo", 11 * 2 * 3), ("study-esc10", 5 * 2 * 3), ("study-schedules", 7 * 5)]
)
def test_the_shipped_studies_have_all_their_methods(name, runs):
    settings = [] if name == "study-demo" else ["data.root=DIR"]
    plan = plan_study(load_study(name), settings)
    assert plan.left_out == {}
    assert len(plan.members) == runs
