"""Which models share workers, and how many workers a placement takes."""

import pytest

from orchestrator.recipes.loader import load_recipe
from workloads.config.data_ranks import num_data_ranks

SPLIT = "placement=split"


def test_models_of_a_family_share_workers_and_controls_stay_with_their_students():
    assert load_recipe("generations", [SPLIT, "compare=false"]).group_models() == (("cnn0", "cnn1"), ("vit1",))
    demo = load_recipe("demo", [SPLIT])
    assert demo.group_models() == (("cnn", "cnn_untaught"), ("vit", "vit_untaught"))


def test_groups_may_be_named():
    named = load_recipe("control-same-family", ["compare=true", SPLIT, "split_groups=[['vit'], ['teacher']]"])
    assert named.group_models() == (("teacher",), ("vit", "vit_untaught"))


@pytest.mark.parametrize(
    ("recipe", "settings", "mistake"),
    [
        ("demo", ["placement=apart"], "placement = 'apart'"),
        ("control-same-family", [SPLIT], r"all models would share workers: teacher \(vit\), vit \(vit\).*split_groups"),
        ("demo", [SPLIT, "split_groups=[['cnn', 'vit']]"], "all models would share workers"),
        ("demo", [SPLIT, "split_groups=[['cnn'], ['vit'], ['ast']]"], "no model named 'ast'; the models are cnn, vit"),
        ("demo", [SPLIT, "split_groups=[['cnn'], ['vit', 'cnn']]"], "split_groups: cnn is named twice"),
        ("mutual", ["split_groups=[['cnn']]"], "split_groups: vit is in no group"),
        ("demo", [SPLIT, "split_groups=[['cnn'], ['vit_untaught']]"], "vit_untaught shares workers with vit, whose"),
        ("demo", ["service.actors=0"], "service.actors = 0: must be above 0"),
        ("demo", ["service.prefetch=0"], "service.prefetch = 0: must be above 0"),
        ("demo", ["service.resources.placement=SPREAD"], "service.resources.placement = 'SPREAD': is for workers"),
    ],
)
def test_mistakes_are_named(recipe, settings, mistake):
    with pytest.raises(ValueError, match=mistake):
        load_recipe(recipe, settings)


def test_shards_are_divided_among_the_workers_of_a_group():
    split = load_recipe("demo", [SPLIT, "train.shards=2"])
    assert [num_data_ranks(split, workers) for workers in (2, 4)] == [1, 2]
    with pytest.raises(ValueError, match=r"--workers 3: placement = 'split' has 2 groups.*give a multiple of 2"):
        num_data_ranks(split, 3)
    with pytest.raises(ValueError, match=r"--workers 6: train.shards = 2 must divide among the 3 workers of a group"):
        num_data_ranks(split, 6)
    assert num_data_ranks(load_recipe("demo", ["train.shards=2"]), 2) == 2
