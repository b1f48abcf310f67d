"""Which settings a search tries next: the proposals, and what they learn from results. The user of optuna here.

A grid and random draws are lists that are known before anything begins, so that whoever resumes tries the same. TPE
proposes from the results so far, which are given to it again when it is resumed. Knows no Ray and no files.
"""

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestrator.search.trial_spec import Task
from workloads.config.search import Choices, Range, Search
from workloads.runtime.rng import keyed_generator

STARTUP = 10  # random trials before TPE models anything (optuna's default)


def num_trials(search: Search, limit: int = 0) -> int:
    """How many trials there are to be: as many as `limit` says, if it does, else as the recipe says.

    Raises ValueError where a grid has fewer points, or a population is not so large.
    """
    if search.searcher == "grid":
        points = math.prod(len(values.choices) for values in search.space.values() if isinstance(values, Choices))
        if limit > points:
            raise ValueError(f"--budget {limit}: the grid has {points} points; leave it out, or widen search.space")
        return limit or points
    if search.searcher == "pbt" and limit not in (0, search.trials):
        raise ValueError(
            f"--budget {limit}: a population has search.trials = {search.trials} members from its beginning; set that"
        )
    return limit or search.trials


def planned(search: Search, limit: int = 0) -> list[dict[str, Any]] | None:
    """The settings of a grid, in the order of its axes, or of random draws; None where results decide."""
    total = num_trials(search, limit)
    if search.searcher == "grid":
        axes = [values.choices for values in search.space.values() if isinstance(values, Choices)]
        points = itertools.islice(itertools.product(*axes), total)
        return [dict(zip(search.space, point, strict=True)) for point in points]
    if search.searcher in ("random", "pbt"):
        return [_drawn(search, number) for number in range(total)]
    return None


class Proposals:
    """Hands out tasks in the order of their numbers; those that were begun before come first, as they were.

    `told` results are TPE's to learn from; the smaller an objective the better.
    """

    def __init__(self, search: Search, begun: list[Task], *, limit: int = 0) -> None:
        self._search, self._begun = search, {task.number: task for task in begun}
        self._planned, self.total = planned(search, limit), num_trials(search, limit)
        self._next = self._numbers()
        self._study = _study(search, begun=len(begun))
        self._asked: dict[int, optuna.trial.Trial] = {}

    def propose(self, slot: int) -> Task | None:
        """The next task; None when there are no more."""
        number = next(self._next, None)
        if number is None:
            return None
        settings = self._settings(number)
        return Task("trial", number, settings, slot=slot)

    def tell(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        """What came of a trial: None of one that failed; of one that was stopped its scores at the rungs, which count
        for less than those of trials that came to their end."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        if objectives is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif stopped:
            for rung, objective in enumerate(objectives):
                trial.report(objective, rung)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, objectives)

    def _numbers(self) -> Iterator[int]:
        begun = sorted(self._begun)
        yield from begun  # also those beyond a smaller limit: they are told again, not tried again
        yield from (number for number in range(self.total) if number not in self._begun)

    def _settings(self, number: int) -> dict[str, Any]:
        if number in self._begun:  # a population's values may have changed since they were planned
            settings = self._begun[number].settings
        else:  # the first ones of TPE are drawn by their numbers: whoever resumes tries them once
            settings = self._planned[number] if self._planned is not None else _drawn(self._search, number)
        if self._planned is not None:
            return settings
        space = self._search.space
        if number in self._begun or number < STARTUP:
            self._study.enqueue_trial({place: _to_optuna(space[place], value) for place, value in settings.items()})
        trial = self._study.ask({place: _distribution(values) for place, values in space.items()})
        self._asked[number] = trial
        return {place: _from_optuna(space[place], value) for place, value in trial.params.items()}


def _study(search: Search, *, begun: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # what was drawn before a resume must not be drawn again
    sampler = optuna.samplers.TPESampler(seed=search.seed + begun, n_startup_trials=STARTUP, multivariate=False)
    return optuna.create_study(sampler=sampler, directions=["minimize"] * (2 if search.second else 1))


def _distribution(values: Range | Choices) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution([json.dumps(value) for value in values.choices])  # a choice may be a whole table
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _to_optuna(values: Range | Choices, value: Any) -> Any:
    return json.dumps(value) if isinstance(values, Choices) else value


def _from_optuna(values: Range | Choices, value: Any) -> Any:
    return json.loads(value) if isinstance(values, Choices) else value


def _drawn(search: Search, number: int) -> dict[str, Any]:
    """Random settings that depend on the search's seed and the trial's number only."""
    settings: dict[str, Any] = {}
    for place, values in search.space.items():
        share = float(keyed_generator(search.seed, "search", number, place).random())
        settings[place] = _at(values, share)
    return settings


def _at(values: Range | Choices, share: float) -> Any:
    """The value at a share, 0 up to 1, of what may be."""
    if isinstance(values, Choices):
        return values.choices[int(share * len(values.choices))]
    low, high = values.low, values.high
    if isinstance(low, int) and isinstance(high, int):
        if not values.log:
            return low + int(share * (high - low + 1))
        return min(high, int(low * ((high + 1) / low) ** share))
    return low * (high / low) ** share if values.log else low + share * (high - low)
