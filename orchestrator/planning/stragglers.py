"""How much longer a step takes that waits for the slowest of N workers. Imports nothing of ours.

A step ends when its slowest worker has: its time is the maximum of N draws. Each worker's time of a step is drawn
independently from a log-normal distribution with mean 1 and a given ratio of standard deviation to mean, whose maximum
has no closed form, so it is simulated. A node that is slow in every step is not in this distribution.
"""

import math
from collections.abc import Iterable

import numpy as np

STEPS = 2000  # that are simulated: the mean of their maxima is accurate to spread / sqrt(STEPS), about 0.1 %
SEED = 0


def straggler_factors(workers: Iterable[int], *, spread: float) -> dict[int, float]:
    """The expected time of a step over that of a mean worker, for each number of workers; 1 for a single one.

    `spread` is the standard deviation of a worker's time over its mean. With s^2 = ln(1 + spread^2), times are
    exp(s z - s^2 / 2) for standard normal z. What is drawn for a worker does not depend on how many others there are.
    """
    deviation = math.sqrt(math.log1p(spread**2))
    generator = np.random.default_rng(SEED)
    factors = {}
    slowest, drawn = np.zeros(STEPS), 0
    for number in sorted(set(workers)):
        for _ in range(number - drawn):
            np.maximum(slowest, generator.lognormal(-(deviation**2) / 2, deviation, STEPS), out=slowest)
        drawn = number
        factors[number] = 1.0 if number == 1 else max(1.0, float(slowest.mean()))
    return factors
