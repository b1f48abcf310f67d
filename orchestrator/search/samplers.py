"""Which settings a search tries next: a grid, random draws, or TPE. The only user of optuna in a search.

A grid and random draws are lists that are known before anything starts, so a resumed search tries the same settings.
TPE proposes from the results so far, which are given to it again when the search is resumed. Does not depend on Ray or
on files.
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
from workloads.config.search import MAX_TRIALS, Choices, Range, Search
from workloads.runtime.rng import keyed_generator

STARTUP_TRIALS = 10  # random trials before TPE models anything (optuna's default)


def num_trials(search: Search, limit: int = 0) -> int:
    """The planned number of trials: `limit` if that is set, else the recipe's.

    Raises ValueError for a grid of too many points, a limit above its points, or one other than the population's size.
    """
    if search.searcher == "grid":
        points = math.prod(len(values.choices) for values in search.space.values() if isinstance(values, Choices))
        if limit > points:
            raise ValueError(f"--budget {limit}: the grid has {points} points; leave it out, or widen search.space")
        if not limit and points > MAX_TRIALS:
            raise ValueError(
                f"search.space: the grid has {points:,} points, must have at most {MAX_TRIALS:,}; leave some out, set "
                "searcher = 'random' or 'tpe', or take the first ones with --budget"
            )
        return limit or points
    if search.searcher == "pbt" and limit not in (0, search.trials):
        raise ValueError(
            f"--budget {limit}: a population has search.trials = {search.trials} members from the start; set that"
        )
    return limit or search.trials


def planned_settings(search: Search, limit: int = 0) -> list[dict[str, Any]] | None:
    """The settings of a grid, in the order of its axes, or of random draws; None where results decide."""
    total = num_trials(search, limit)
    if search.searcher == "grid":
        axes = [values.choices for values in search.space.values() if isinstance(values, Choices)]
        points = itertools.islice(itertools.product(*axes), total)
        return [dict(zip(search.space, point, strict=True)) for point in points]
    if search.searcher in ("random", "pbt"):
        return [_random_settings(search, number) for number in range(total)]
    return None


class TrialSampler:
    """Proposes trials in the order of their numbers; those that an earlier driver started come first, unchanged.

    Called by Tune's loop in the driver's process, from one thread. `next_task` is called once for each trial;
    `on_task_end` at most once for each, in any order. A kill loses only TPE's model: a new driver makes a new sampler
    from the trials that were started, and reports the results of those that have ended again.
    """

    def __init__(self, search: Search, started: list[Task], *, limit: int = 0) -> None:
        self._search, self._started = search, {task.number: task for task in started}
        self._planned, self.total = planned_settings(search, limit), num_trials(search, limit)
        self._numbers = self._trial_numbers()
        self._study = _study(search, num_started=len(started))
        self._pending: dict[int, optuna.trial.Trial] = {}

    def next_task(self, slot: int) -> Task | None:
        """The next trial, for that slot; None when there are no more."""
        number = next(self._numbers, None)
        if number is None:
            return None
        settings = self._settings(number)
        return Task("trial", number, settings, slot=slot)

    def on_task_end(self, number: int, objectives: list[float] | None, *, stopped: bool = False) -> None:
        """Learn from a trial's objectives, smaller is better: None of one that failed; of one that was stopped its
        scores at the rungs, which count for less than those of trials that finished."""
        trial = self._pending.pop(number, None)
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

    def _trial_numbers(self) -> Iterator[int]:
        started = sorted(self._started)
        yield from started  # also those beyond a smaller limit: their results are reported again, nothing is rerun
        yield from (number for number in range(self.total) if number not in self._started)

    def _settings(self, number: int) -> dict[str, Any]:
        if number in self._started:  # a population's values may have changed since they were planned
            settings = self._started[number].settings
        elif self._planned is not None:
            settings = self._planned[number]
        else:  # TPE's first trials depend on their numbers alone, so that a resumed search tries them once
            settings = _random_settings(self._search, number)
        if self._planned is not None:
            return settings
        return self._ask_study(number, fixed=settings if number in self._started or number < STARTUP_TRIALS else None)

    def _ask_study(self, number: int, *, fixed: dict[str, Any] | None) -> dict[str, Any]:
        """TPE's settings for a trial, which are the `fixed` ones if they are given."""
        space = self._search.space
        if fixed is not None:
            self._study.enqueue_trial({place: _to_optuna(space[place], value) for place, value in fixed.items()})
        trial = self._study.ask({place: _distribution(values) for place, values in space.items()})
        self._pending[number] = trial
        return {place: _from_optuna(space[place], value) for place, value in trial.params.items()}


def _study(search: Search, *, num_started: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # another seed after a resume: what was drawn before must not be drawn again
    sampler = optuna.samplers.TPESampler(
        seed=search.seed + num_started, n_startup_trials=STARTUP_TRIALS, multivariate=False
    )
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


def _random_settings(search: Search, number: int) -> dict[str, Any]:
    """Random settings that depend on the search's seed and the trial's number only."""
    settings: dict[str, Any] = {}
    for place, values in search.space.items():
        share = float(keyed_generator(search.seed, "search", number, place).random())
        settings[place] = _value_at(values, share)
    return settings


def _value_at(values: Range | Choices, share: float) -> Any:
    """The value at a share, from 0 to below 1, of a range or of a list of choices."""
    if isinstance(values, Choices):
        return values.choices[int(share * len(values.choices))]
    low, high = values.low, values.high
    if isinstance(low, int) and isinstance(high, int):
        if not values.log:
            return low + int(share * (high - low + 1))
        return min(high, int(low * ((high + 1) / low) ** share))
    return low * (high / low) ** share if values.log else low + share * (high - low)
