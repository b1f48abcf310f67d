"""What a search refuses before anything starts; more of it through the command line in tests/integration."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.search.request import SearchRequest
from orchestrator.search.validation import check, check_search_data
from workloads.config.recipe import Recipe
from workloads.config.resources import Resources
from workloads.config.search import Choices, Range, Search

SPACE = {"train.shards": Choices(choices=(1, 2))}


def request(tiny: Callable[..., Recipe], path: str, *values: object, workers: int = 1) -> SearchRequest:
    """A search over a single value of the recipe."""
    search = Search(space={path: Choices(choices=values)}, repeats=2)
    return SearchRequest(replace(tiny(), search=search), "antiphon search tiny", workers=workers, finals=False)


@pytest.mark.parametrize(
    ("path", "values", "workers", "message"),
    [
        ("train.threads", (1, 3), 1, "train.threads = 3: slots are sized for the recipe's"),
        ("train.device", ("cpu", "cuda"), 1, "train.device = 'cuda': slots are sized for the recipe's 'cpu'"),
        ("train.shards", (2, 3), 2, "--workers 2: train.shards = 3 must be a multiple of it"),
    ],
)
def test_every_trial_must_fit_the_slots_and_workers(tiny, path, values, workers, message) -> None:
    with pytest.raises(ValueError, match=message):
        check(request(tiny, path, *values, workers=workers))


def test_a_range_of_shards_cannot_be_divided_among_workers(tiny) -> None:
    search = Search(space={"train.shards": Range(low=2, high=8)}, searcher="tpe", repeats=2)
    with pytest.raises(ValueError, match=r"not every value of the range train\.shards is a multiple of it"):
        check(SearchRequest(replace(tiny(), search=search), "antiphon search tiny", workers=2, finals=False))


def test_shards_may_vary_where_workers_can_divide_them(tiny) -> None:
    check(request(tiny, "train.shards", 2, 4, workers=2))


@pytest.mark.parametrize(("table", "key"), [({"labels": {"a": "b"}}, "labels"), ({"placement": "SPREAD"}, "placement")])
def test_what_tune_cannot_place_is_refused(tiny, table, key) -> None:
    recipe = replace(tiny(), resources=Resources(**table), search=Search(space=SPACE, repeats=2))
    with pytest.raises(ValueError, match=rf"resources\.{key}: trials of one worker each run in Tune's processes"):
        check(SearchRequest(recipe, "antiphon search tiny"))


def test_a_recipe_without_a_space_cannot_be_searched(tiny) -> None:
    with pytest.raises(ValueError, match=r"has no \[search\.space\]; name there the values to vary"):
        check(SearchRequest(replace(tiny(), search=None), "antiphon search tiny"))


def test_a_length_of_clips_that_a_model_cannot_take_is_refused(tiny) -> None:
    short = replace(tiny(), data=replace(tiny().data, clip_seconds=0.1), search=Search(space=SPACE, repeats=2))
    with pytest.raises(ValueError, match=r"data\.clip_seconds = 0\.1: models\.vit .*clip_seconds=0\.16 on"):
        check(SearchRequest(short, "antiphon search tiny", finals=False))


def test_the_largest_batch_of_the_space_must_fit_the_training_clips(tiny) -> None:
    """Not that of the recipe, which the space replaces."""
    search = request(tiny, "train.shard_size", 4, 8)
    wide = replace(search.recipe, train=replace(search.recipe.train, shard_size=4096))
    _, largest = check(replace(search, recipe=wide))
    assert largest.shard_size == 8
    check_search_data(wide, largest)
    _, largest = check(request(tiny, "train.shard_size", 4, 4096))
    with pytest.raises(ValueError, match=r"train\.shard_size x train\.shards = 4096: a batch needs as many clips"):
        check_search_data(tiny(), largest)
