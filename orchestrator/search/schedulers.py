"""Tune's schedulers, by a search's settings: who is stopped at a rung, or goes on with another's weights."""

import random
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining

from workloads.config.search import Choices, Range, Search


def _scheduler(search: Search, height: int = 0) -> Any:
    """Who stops trials, or changes them, at rungs; a population begins at so many rungs."""
    if search.scheduler == "none" and search.searcher != "pbt":
        return None
    heights: dict[str, Any] = {"time_attr": "height", "metric": "objective", "mode": "min"}
    if search.scheduler == "asha":
        return ASHAScheduler(**heights, max_t=search.rungs, reduction_factor=search.halving)
    if search.scheduler == "hyperband":
        return HyperBandScheduler(**heights, max_t=search.rungs, reduction_factor=search.halving)
    random.seed(search.seed)  # Tune's own draws
    return Population(
        **heights,
        perturbation_interval=1,
        burn_in_period=height + 1,  # where it looks first
        synch=True,  # all are compared at the same rung
        hyperparam_mutations={"task": {"settings": {place: _domain(values) for place, values in search.space.items()}}},
        custom_explore_fn=partial(_within, search),
    )


class Population(PopulationBasedTraining):
    """Tune's, but that nobody waits at a rung for members that are gone; Tune's would wait for ever."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        for other in tune_controller.get_trials():
            if other.is_finished():
                self._trial_state[other].last_train_time = int(self._next_perturbation_sync)
        return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        chosen = super().choose_trial_to_run(tune_controller)
        held = {trial.status for trial in tune_controller.get_trials() if not trial.is_finished()}
        if chosen is None and held == {Trial.PAUSED}:  # they waited for who is gone: all go on as they are
            self._next_perturbation_sync += self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


def _domain(values: Range | Choices) -> Any:
    if isinstance(values, Choices):
        return list(values.choices)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _within(search: Search, config: dict[str, Any]) -> dict[str, Any]:
    """Values that were changed by a factor, back within their ranges."""
    settings = config["task"]["settings"]
    for place, values in search.space.items():
        if isinstance(values, Range):
            settings[place] = min(max(settings[place], values.low), values.high)
    return config
