"""A search's trials as an Optuna study: hyperparameter importance and Optuna's parallel coordinates.

The study lives in memory: nothing is written. It is built for every search, whichever sampler proposed the trials.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.reports.formatting import escape_label
from orchestrator.reports.search.formatting import format_setting
from orchestrator.reports.search.snapshot import Scored, SearchSnapshot

MIN_TRIALS = 10
MIN_TRIALS_PER_PARAMETER = 4
NUM_TREES = 32
NUM_SUBSETS = 8  # of the trials, to see how much the importance depends on which were run
SUBSET_SHARE = 0.8


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the objective's variance: of all trials, and the lowest and highest over the subsets."""

    share: float
    low: float
    high: float


def trials_missing(search: SearchSnapshot) -> int:
    """How many more scored trials importance needs; zero or less: none."""
    return max(MIN_TRIALS, MIN_TRIALS_PER_PARAMETER * len(search.space)) - len(_compared(search))


def importance(search: SearchSnapshot) -> dict[str, Importance]:
    """Each parameter's share of the variance of `Search.comparable_scores`, by fANOVA, the largest first.

    fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) fits a random forest to the trials and splits its variance over the
    space; interactions of parameters are in no share. Empty if all objective values are equal. Needs
    `trials_missing(search) <= 0`.
    """
    assert trials_missing(search) <= 0, "too few trials"
    compared, generator = _compared(search), random.Random(0)
    if len({score for _, score in compared}) == 1:
        return {}
    shares = _shares(search, compared)
    size = round(SUBSET_SHARE * len(compared))
    subsets = [_shares(search, generator.sample(compared, size)) for _ in range(NUM_SUBSETS)]
    spread = {name: [subset.get(name, 0.0) for subset in subsets] + [share] for name, share in shares.items()}
    return {name: Importance(share, min(spread[name]), max(spread[name])) for name, share in shares.items()}


def optuna_parallel_coordinates(search: SearchSnapshot) -> go.Figure:
    """Optuna's parallel coordinates of the completed trials; needs at least one."""
    study = _study(search, search.final_scores)
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=search.metric)
    figure.update_traces(opacity=0.75, line={"width": 2})
    return figure


def _compared(search: SearchSnapshot) -> Scored:
    """The trials that can be compared and have a value for every parameter of the space."""
    return [
        (trial, score) for trial, score in search.comparable_scores[1] if trial.settings.keys() >= search.space.keys()
    ]


def _shares(search: SearchSnapshot, scored: Scored) -> dict[str, float]:
    if len({score for _, score in scored}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=0)
    study = _study(search, scored, log_as_linear=True)
    shares = evaluator.evaluate(study)  # of the whole variance; `get_param_importances` would make them sum to 1
    names = {escape_label(name): name for name in search.space}
    return {names[name]: float(share) for name, share in shares.items()}


def _study(search: SearchSnapshot, scored: Scored, *, log_as_linear: bool = False) -> optuna.Study:
    """Names are escaped, since Plotly interprets some HTML in what Optuna passes to it; choices are formatted as text.

    `log_as_linear` replaces parameters that are searched on a logarithmic scale by their logarithms: fANOVA weights
    the parts of a range by their length.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [{name: _value(search, name, trial.settings[name]) for name in search.space} for trial, _ in scored]
    by_name = {name: _distribution(search, name, [point[name] for point in points]) for name in search.space}
    for name in [name for name, domain in search.space.items() if log_as_linear and domain.get("log")]:
        distribution = by_name[name]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        by_name[name] = FloatDistribution(math.log(distribution.low), math.log(distribution.high))
        points = [point | {name: math.log(point[name])} for point in points]
    study = optuna.create_study()
    for point, (_, score) in zip(points, scored, strict=True):
        params = {escape_label(name): value for name, value in point.items()}
        distributions = {escape_label(name): distribution for name, distribution in by_name.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    return study


def _distribution(search: SearchSnapshot, name: str, tried: Sequence[Any]) -> BaseDistribution:
    """A parameter's domain, widened to the values tried: population based training leaves the space."""
    domain = search.space[name]
    if "choices" in domain:
        values = [_value(search, name, choice) for choice in domain["choices"]]
        return CategoricalDistribution(list(dict.fromkeys([*values, *tried])))
    low, high, log = min(domain["low"], *tried), max(domain["high"], *tried), bool(domain.get("log"))
    if all(isinstance(value, int) for value in (low, high, *tried)):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _value(search: SearchSnapshot, name: str, value: Any) -> Any:
    return escape_label(format_setting(search, name, value)) if "choices" in search.space[name] else value
