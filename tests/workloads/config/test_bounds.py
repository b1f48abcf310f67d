"""Settings beyond what a run can hold are refused when a recipe is read, before anything is made of them."""

import pytest

from orchestrator.recipes.loader import load_recipe
from workloads.distill.schedule import own_steps, plan_phases


@pytest.mark.parametrize(
    ("recipe", "setting", "message"),
    [
        ("demo", "schedule.turns=100001", "schedule.turns = 100001: makes more than 100,000 phases"),
        (
            "demo",
            'schedule={kind="alternate", burn_in=120, period=60, turns=1000000000}',
            "schedule.turns = 1000000000: makes 60,000,000,120 steps in all",
        ),
        ("demo", f"train.keep_last={2**63}", "train.keep_last = 0x8000000000000000: is an integer beyond 64 bits"),
        ("demo", f"data.cache_gb=1{'0' * 400}", "is an integer beyond 64 bits"),
        ("demo", f"train.seed=0x{'f' * 9000}", "is an integer beyond 64 bits"),
        ("demo", "schedule.period=1000000000", "schedule.period = 1000000000: makes"),
        ("demo", "schedule.burn_in=100000000", "schedule.burn_in = 100000000: makes"),
        ("demo", "schedule.ramp=-1", "schedule.ramp = -1: must be 0 or more"),
        ("mutual", "schedule.steps=100000000", "schedule.steps = 100000000: makes"),
        ("one-way", "schedule.teacher_steps=99999999", "schedule.teacher_steps = 99999999: makes 100,000,179 steps"),
        ("generations", "schedule.steps=40000000", "schedule.steps = 40000000: makes 120,000,000 steps in all"),
        ("demo", "data.synthetic_clips=100001", "data.synthetic_clips = 100001: must be at most 100,000"),
        ("demo", "data.clip_seconds=1e9", "data.clip_seconds = 1000000000.0: must be at most 3,600"),
        ("demo", "data.val_share=1e-9", "data.val_share = 1e-09: must be 0.001 to 0.5"),
        ("demo", "data.split_seed=-1", "data.split_seed = -1: must be 0 to 2^32 - 1"),
        ("demo", "train.shards=1000000000", "train.shards = 1000000000: must be at most 16,777,216"),
        ("demo", "train.shard_size=1000000000", "train.shard_size = 1000000000: must be at most"),
        ("demo", "train.threads=1000000000", "train.threads = 1000000000: must be at most 1,024"),
        ("demo", "models.cnn.average.best=1001", "models.cnn.average.best = 1001: must be at most 1,000"),
        ("demo", "models.cnn.front_end.frames=1000000000", "models.cnn.front_end.frames = 1000000000: must be at most"),
        ("demo", "models.cnn.arch.width=100", "models.cnn.arch.width = 100.0: must be at most 16"),
        ("demo", "models.vit.arch.depth=1001", "models.vit.arch.depth = 1001: must be at most 1,000"),
        ("demo", "models.vit.arch.dim=3000000", "models.vit.arch.dim = 3000000: makes"),
        ("search-demo", "search.trials=10001", "search.trials = 10001: must be at most 10,000"),
        ("search-demo", "search.rungs=1001", "search.rungs = 1001: must be at most 1,000"),
        ("search-demo", "search.seed=-1", "search.seed = -1: must be 0 or more"),
        ("search-demo", "search.seed=4294967295", "search.seed = 4294967295: must be at most"),
        ("search-demo", f"search.space={{'train.seed'={{choices={[*range(1001)]}}}}}", "1,001 values; must be at most"),
    ],
)
def test_absurd_settings_are_refused_with_key_and_rule(recipe, setting, message):
    with pytest.raises(ValueError, match=r"must |more than|beyond") as caught:
        load_recipe(recipe, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_exchange_in_every_step_of_many_is_refused():
    many = ["schedule.burn_in=0", "schedule.steps=100001"]
    with pytest.raises(ValueError, match=r"schedule\.exchange = 1: makes more than 100,000 phases"):
        load_recipe("mutual", [*many, "schedule.exchange=1"])
    assert len(plan_phases(load_recipe("mutual", [*many, "schedule.exchange=2"]))) == 50_001


def test_a_hundred_thousand_turns_are_planned():
    phases = plan_phases(
        load_recipe("demo", ["compare=true", "schedule.burn_in=0", "schedule.period=1", "schedule.turns=100000"])
    )
    assert (len(phases), phases[-1].end) == (100_000, 100_000)
    names = ("cnn", "vit", "cnn_untaught", "vit_untaught")
    assert own_steps(phases) == dict.fromkeys(names, 50_000)


def test_a_name_is_one_that_a_folder_can_have():
    with pytest.raises(ValueError, match="must have 1 to 150 characters, as folders have"):
        load_recipe("demo", [f"name={'a' * 300}"])
