"""The slowest of N workers, against what is known of the largest of N draws."""

import math
from statistics import NormalDist

import pytest

from orchestrator.planning.stragglers import straggler_factors


def test_without_spread_nobody_is_waited_for() -> None:
    assert straggler_factors((1, 2, 1000), spread=0.0) == {1: 1.0, 2: 1.0, 1000: 1.0}


def expected_maximum(number: int, spread: float) -> float:
    """The mean of the largest of so many log-normal draws: the integral of its quantiles, u^(1/n), over 0 to 1."""
    deviation, normal, points = math.sqrt(math.log1p(spread**2)), NormalDist(), 20_000
    quantiles = (normal.inv_cdf(((index + 0.5) / points) ** (1 / number)) for index in range(points))
    return sum(math.exp(deviation * z - deviation**2 / 2) for z in quantiles) / points


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_the_simulated_means_are_those_of_the_distribution(spread: float) -> None:
    factors = straggler_factors((2, 10, 1000), spread=spread)
    for number, factor in factors.items():
        assert factor - 1 == pytest.approx(expected_maximum(number, spread) - 1, rel=0.05)


def test_a_number_s_factor_does_not_depend_on_which_others_are_asked_for() -> None:
    several = straggler_factors((1, 7, 64, 500), spread=0.1)
    assert straggler_factors((64,), spread=0.1) == {64: several[64]}
    assert sorted(several.values()) == list(several.values())  # more workers are never faster
