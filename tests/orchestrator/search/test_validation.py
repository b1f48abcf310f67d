"""What a search refuses before anything starts; more of it through the command line in tests/integration."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.search.request import SearchRequest
from orchestrator.search.validation import check
from workloads.config.recipe import Recipe
from workloads.config.search import Choices, Range, Search


def request(tiny: Callable[..., Recipe], place: str, *values: object, workers: int = 1) -> SearchRequest:
    """A search over one place alone."""
    search = Search(space={place: Choices(choices=values)}, repeats=2)
    return SearchRequest(replace(tiny(), search=search), "antiphon search tiny", workers=workers, finals=False)


@pytest.mark.parametrize(
    ("place", "values", "workers", "words"),
    [
        ("train.threads", (1, 3), 1, "train.threads = 3: a slot is made for the recipe's"),
        ("train.device", ("cpu", "cuda"), 1, "train.device = 'cuda': a slot is made for the recipe's 'cpu'"),
        ("train.shards", (2, 3), 2, "--workers 2: train.shards = 3 must divide among them"),
    ],
)
def test_every_trial_must_fit_the_slots_and_workers(tiny, place, values, workers, words) -> None:
    with pytest.raises(ValueError, match=words):
        check(request(tiny, place, *values, workers=workers))


def test_a_range_of_batches_cannot_be_shared_by_workers(tiny) -> None:
    search = Search(space={"train.shards": Range(low=2, high=8)}, searcher="tpe", repeats=2)
    with pytest.raises(ValueError, match=r"not every value of the range train\.shards divides among them"):
        check(SearchRequest(replace(tiny(), search=search), "antiphon search tiny", workers=2, finals=False))


def test_batches_may_vary_where_workers_can_share_them(tiny) -> None:
    check(request(tiny, "train.shards", 2, 4, workers=2))
