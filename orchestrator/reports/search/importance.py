"""A search's trials as an Optuna study, and what Optuna can say of them. Draws what Optuna draws.

The study lives in memory: nothing is written, and a search that Optuna did not steer is told in the same way.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.reports.search.formatting import escaped, in_words
from orchestrator.reports.search.snapshot import Scored, Search

LEAST_TRIALS = 10  # and so many for each parameter:
LEAST_TRIALS_EACH = 4
TREES = 32
SUBSETS = 8  # of the trials, to see how far the importance hangs on which were run
SUBSET = 0.8


@dataclass(frozen=True)
class Importance:
    """Shares of the score's variance, by parameter: of all trials, and the lowest and highest of the subsets."""

    share: float
    low: float
    high: float


def trials_missing(search: Search) -> int:
    """How many trials with a score are missing before importance says anything."""
    return max(LEAST_TRIALS, LEAST_TRIALS_EACH * len(search.space)) - len(_compared(search))


def importance(search: Search) -> dict[str, Importance]:
    """Each parameter's share of the variance of the score at `Search.comparable_scores`, by fANOVA, the largest first.

    fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) fits a forest to the trials and splits its variance over the space;
    what parameters do together is in no share. Empty if the scores do not differ. Needs `trials_missing(search) <= 0`.
    """
    assert trials_missing(search) <= 0, "too few trials"
    compared, draw = _compared(search), random.Random(0)
    if len({score for _, score in compared}) == 1:
        return {}
    whole = _shares(search, compared)
    size = round(SUBSET * len(compared))
    parts = [_shares(search, draw.sample(compared, size)) for _ in range(SUBSETS)]
    spread = {name: [part.get(name, 0.0) for part in parts] + [share] for name, share in whole.items()}
    return {name: Importance(share, min(spread[name]), max(spread[name])) for name, share in whole.items()}


def parallel_coordinates(search: Search) -> go.Figure:
    """Optuna's parallel coordinates of the trials that came to their end; needs one."""
    study = _study(search, search.final_scores)
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=search.metric)
    figure.update_traces(opacity=0.75, line={"width": 2})
    return figure


def _compared(search: Search) -> Scored:
    return [
        (trial, score) for trial, score in search.comparable_scores[1] if trial.settings.keys() >= search.space.keys()
    ]


def _shares(search: Search, scored: Scored) -> dict[str, float]:
    if len({score for _, score in scored}) == 1:
        return {}
    judge = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    study = _study(search, scored, straight=True)
    found = judge.evaluate(study)  # as shares of all variance; `get_param_importances` would make them sum to 1
    names = {escaped(name): name for name in search.space}
    return {names[name]: float(share) for name, share in found.items()}


def _study(search: Search, scored: Scored, *, straight: bool = False) -> optuna.Study:
    """Names are escaped, since Plotly reads some HTML in what Optuna hands to it; choices are their words.

    `straight` puts logarithms in the place of what is searched in even steps of its logarithm: fANOVA weighs a range's
    parts by their length.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [{name: _value(search, name, trial.settings[name]) for name in search.space} for trial, _ in scored]
    kinds = {name: _distribution(search, name, [point[name] for point in points]) for name in search.space}
    for name in [name for name, span in search.space.items() if straight and span.get("log")]:
        kind = kinds[name]
        assert isinstance(kind, FloatDistribution | IntDistribution)
        kinds[name] = FloatDistribution(math.log(kind.low), math.log(kind.high))
        points = [point | {name: math.log(point[name])} for point in points]
    study = optuna.create_study()
    for point, (_, score) in zip(points, scored, strict=True):
        params = {escaped(name): value for name, value in point.items()}
        distributions = {escaped(name): kind for name, kind in kinds.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    return study


def _distribution(search: Search, name: str, seen: Sequence[Any]) -> BaseDistribution:
    """A parameter's range, widened to what was really tried: population based training leaves the space."""
    span = search.space[name]
    if "choices" in span:
        values = [_value(search, name, choice) for choice in span["choices"]]
        return CategoricalDistribution(list(dict.fromkeys([*values, *seen])))
    low, high, log = min(span["low"], *seen), max(span["high"], *seen), bool(span.get("log"))
    if all(isinstance(value, int) for value in (low, high, *seen)):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _value(search: Search, name: str, value: Any) -> Any:
    return escaped(in_words(search, name, value)) if "choices" in search.space[name] else value
