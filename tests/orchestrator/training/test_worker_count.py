"""`--workers N` and `--workers MIN-MAX`: the numbers that the shards of the global batch divide among."""

from collections.abc import Callable

import pytest

from orchestrator.training.request import RunRequest, check_request
from orchestrator.training.worker_count import WorkerCount, parse_workers, require_workers_divide
from workloads.config.recipe import Recipe


def test_a_number_or_a_range() -> None:
    assert parse_workers("4") == WorkerCount(4, 4)
    assert parse_workers("2-8") == WorkerCount(2, 8)
    assert [str(parse_workers(text)) for text in ("4", "2-8", "3-3")] == ["4", "2-8", "3"]
    assert [parse_workers(text).elastic for text in ("4", "2-8", "3-3")] == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "--workers 'many': must be a number of workers \\(4\\), or a range of them \\(2-8\\)"),
        ("-2", "--workers '-2': must be"),
        ("2-", "--workers '2-': must be"),
        ("0", "--workers 0: must be 1 or more"),
        ("0-2", "--workers 0-2: must be 1 or more"),
        ("1-1000000", "at most 100,000"),
        ("8-2", "--workers 8-2: the first number must not be above the second; give 2-8"),
    ],
)
def test_others_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_workers(text)


def test_only_numbers_that_divide_the_shards_count() -> None:
    assert WorkerCount(1, 12).sizes(12) == (1, 2, 3, 4, 6, 12)
    assert WorkerCount(2, 5).sizes(12) == (2, 3, 4)
    assert WorkerCount(4, 100_000).sizes(8) == (4, 8)
    assert WorkerCount(5, 7).sizes(8) == ()


def test_a_range_without_such_a_number_is_refused_with_those_that_there_are(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("demo", "train.shards=4")
    require_workers_divide(recipe, parse_workers("3-6"))
    with pytest.raises(ValueError, match=r"--workers 5-8: train.shards = 4 divides .* none .*, but among 1, 2, 4; "):
        require_workers_divide(recipe, parse_workers("5-8"))
    with pytest.raises(ValueError, match=r"--workers 3: train.shards = 4 must divide among them; --set train.shards=3"):
        require_workers_divide(recipe, parse_workers("3"))


def test_a_range_needs_ray_and_a_placement_that_ray_can_count(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("demo", "train.shards=4")
    with pytest.raises(ValueError, match="--workers 1-4: --local runs in this process alone"):
        check_request(RunRequest(recipe, "antiphon run", workers=WorkerCount(1, 4), local=True))
    spread = tiny("demo", "train.shards=4", 'resources={placement="STRICT_SPREAD"}')
    check_request(RunRequest(spread, "antiphon run", workers=WorkerCount(4, 4)))
    split = tiny("demo", "train.shards=4", "placement=split")
    with pytest.raises(ValueError, match="--workers 1-4: placement = 'split' needs one number of workers"):
        check_request(RunRequest(split, "antiphon run", workers=WorkerCount(1, 4)))
    with pytest.raises(ValueError, match=r"--workers 1-4: Ray reserves nodes .* 'STRICT_SPREAD' forbids; give one"):
        check_request(RunRequest(spread, "antiphon run", workers=WorkerCount(1, 4)))
