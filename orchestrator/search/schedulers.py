"""Tune's scheduler for a search's settings: which trials stop at a rung, or continue with another trial's weights."""

import random
from functools import partial
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining

from workloads.config.search import Choices, Range, Search


def build_scheduler(search: Search, rungs_done: int = 0) -> Any:
    """The scheduler that stops or changes trials at rungs; None for none.

    A resumed population starts with `rungs_done` rungs behind it.
    """
    if search.scheduler == "none" and search.searcher != "pbt":
        return None
    criterion: dict[str, Any] = {"time_attr": "rung_number", "metric": "objective", "mode": "min"}
    if search.scheduler == "asha":
        return ASHAScheduler(**criterion, max_t=search.rungs, reduction_factor=search.halving)
    if search.scheduler == "hyperband":
        return HyperBandScheduler(**criterion, max_t=search.rungs, reduction_factor=search.halving)
    random.seed(search.seed)  # Tune's own draws
    return PopulationBasedTrainingWithoutDeadlock(
        **criterion,
        perturbation_interval=1,
        burn_in_period=rungs_done + 1,  # the first rung at which it compares
        synch=True,  # all are compared at the same rung
        hyperparam_mutations={"task": {"settings": {place: _domain(values) for place, values in search.space.items()}}},
        custom_explore_fn=partial(_clip_to_ranges, search),
    )


class PopulationBasedTrainingWithoutDeadlock(PopulationBasedTraining):
    """Tune's synchronous scheduler, except that members do not wait at a rung for members that have ended.

    Tune's own waits for ever then. Both methods are called by Tune's loop in the driver's process.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        for other in tune_controller.get_trials():
            if other.is_finished():
                self._trial_state[other].last_train_time = int(self._next_perturbation_sync)
        return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        chosen = super().choose_trial_to_run(tune_controller)
        statuses = {trial.status for trial in tune_controller.get_trials() if not trial.is_finished()}
        if chosen is None and statuses == {Trial.PAUSED}:  # all wait for a member that has ended: continue unchanged
            self._next_perturbation_sync += self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen


def _domain(values: Range | Choices) -> Any:
    if isinstance(values, Choices):
        return list(values.choices)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _clip_to_ranges(search: Search, config: dict[str, Any]) -> dict[str, Any]:
    """Bring values that PBT has multiplied by a factor back within their ranges."""
    settings = config["task"]["settings"]
    for place, values in search.space.items():
        if isinstance(values, Range):
            settings[place] = min(max(settings[place], values.low), values.high)
    return config
