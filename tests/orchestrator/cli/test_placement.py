"""Placements on the command line: what is refused, with the fix, and what a plan says of them."""

import json

import pytest

from orchestrator.recipes.loader import load_recipe, resolve
from orchestrator.runs.resume import differences

SPLIT = ("--set", "placement=split")


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (("run", "demo", "--local", *SPLIT), "placement = 'split': --local trains all models in this process"),
        (("run", "demo", "--workers", "3", *SPLIT), "--workers 3: placement = 'split' has 2 groups of models"),
        (("run", "demo", "--workers", "4", *SPLIT), "train.shards = 1 must divide among the 2 workers of a group"),
        (("run", "mutual", "--set", "placement=service"), "set source = 'snapshot'"),
        (
            ("plan", "demo", "--cluster", "example", *SPLIT),
            "--cluster predicts the times of workers that hold all models",
        ),
        (("search", "search-demo", *SPLIT), "each worker of a trial holds all models"),
    ],
)
def test_what_a_command_cannot_do_is_refused(antiphon, tmp_path, arguments, mistake):
    storage = () if arguments[0] == "plan" else ("--storage", tmp_path / "runs")
    done = antiphon(*arguments, *storage)
    assert done.code == 2
    assert mistake in " ".join(done.err.split())
    assert not (tmp_path / "runs").exists()


def test_a_plan_counts_what_is_the_same_wherever_models_are(antiphon):
    plans = [antiphon("plan", "demo", "--json", *settings) for settings in ((), SPLIT)]
    assert [done.code for done in plans] == [0, 0]
    assert json.loads(plans[1].out) == json.loads(plans[0].out)
    assert "placement = 'split' computes the same" in plans[1].err


def test_a_run_may_be_resumed_under_another_placement():
    begun = resolve(load_recipe("demo"))
    changed = ("placement=split", "split_groups=[['cnn'], ['vit']]", "service.actors=2")
    assert differences(load_recipe("demo", list(changed)), begun) == []
