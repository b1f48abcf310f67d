"""Which settings a search tries next: the proposals, and what they learn from results. The user of optuna here.

A grid and random draws are lists that are known before anything begins, so that whoever resumes tries the same. TPE
proposes from the results so far, which are given to it again when it is resumed. Knows no Ray and no files.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestrator.search_files import Task
from workloads.keyed import keyed_generator
from workloads.space import Choices, Range, Search

STARTUP = 10  # random trials before TPE models anything (optuna's default)


def planned(search: Search) -> list[dict[str, Any]] | None:
    """All settings of a grid, in the order of its axes, or of random draws; None where results decide."""
    if search.searcher == "grid":
        axes = [values.choices for values in search.space.values() if isinstance(values, Choices)]
        return [dict(zip(search.space, point, strict=True)) for point in itertools.product(*axes)]
    if search.searcher in ("random", "pbt"):
        return [_drawn(search, number) for number in range(search.trials)]
    return None


class Proposals:
    """Hands out tasks in the order of their numbers; those that were begun before come first, as they were.

    `told` results are TPE's to learn from; the smaller an objective the better.
    """

    def __init__(self, search: Search, begun: list[Task], *, limit: int = 0) -> None:
        self._search, self._begun = search, {task.number: task for task in begun}
        self._planned = planned(search)
        self.total = search.trials if self._planned is None else len(self._planned)
        self.total = min(self.total, limit) if limit else self.total
        self._next = self._numbers()
        self._study = _study(search)
        self._asked: dict[int, optuna.trial.Trial] = {}

    def propose(self, slot: int) -> Task | None:
        """The next task; None when there are no more."""
        number = next(self._next, None)
        if number is None:
            return None
        settings = self._settings(number)
        return Task("trial", number, settings, slot=slot)

    def tell(self, number: int, objectives: list[float] | None) -> None:
        """What came of a trial; None for one that failed."""
        trial = self._asked.pop(number, None)
        if trial is None:
            return
        if objectives is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, objectives)

    def _numbers(self) -> Iterator[int]:
        begun = sorted(self._begun)
        yield from begun  # also those beyond a smaller limit: they are told again, not tried again
        yield from (number for number in range(self.total) if number not in self._begun)

    def _settings(self, number: int) -> dict[str, Any]:
        if self._planned is not None:  # a population's values may have changed since they were planned
            return self._begun[number].settings if number in self._begun else self._planned[number]
        space = self._search.space
        if number in self._begun:
            settings = self._begun[number].settings
            self._study.enqueue_trial({place: _to_optuna(space[place], value) for place, value in settings.items()})
        trial = self._study.ask({place: _distribution(values) for place, values in space.items()})
        self._asked[number] = trial
        return {place: _from_optuna(space[place], value) for place, value in trial.params.items()}


def _study(search: Search) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=STARTUP, multivariate=False)
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
