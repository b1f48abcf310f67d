"""A search as its files describe it at one moment, as frozen values: its trials, its finals, its outcome.

Does not depend on any server or process: a search can be read as well long after it ended. The files are read by
`orchestrator/search/store.py`; drawing is left to the other modules of this folder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.search.rungs import RungScore
from orchestrator.search.store import DEFINITION, SearchFiles, SearchStore, TaskFiles
from workloads.config.search import objective_name

PATIENCE_S = 5.0  # how long a reader waits for a store that is unavailable
SILENT_S = 180.0  # without news of a trial and without a heartbeat of the driver, which has one every ten seconds
RUNNING, DONE, STOPPED, FAILED, INTERRUPTED = "running", "done", "stopped", "failed", "interrupted"


@dataclass(frozen=True)
class Trial:
    """One trial or final run; times in seconds since the epoch. Without a result it is running, or was interrupted."""

    name: str
    number: int
    kind: str  # trial, finalist, winner, control or full
    settings: Mapping[str, Any]
    began: float
    status: str
    ended: float | None = None
    seed: int | None = None  # None: the recipe's own
    reason: str = ""
    objective: float | None = None
    second: float | None = None
    history: tuple[RungScore, ...] = ()
    last_report: float = 0.0  # when it last reported a rung; 0: not yet
    loop_seconds: float = 0.0
    host: str = ""
    slot: int | None = None
    mlflow_path: str = ""  # of its page within MLflow's; empty: not tracked, or not known yet
    test: Mapping[str, Mapping[str, float]] | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None

    @property
    def steps(self) -> int:
        """The last rung that it reached."""
        return self.history[-1].step if self.history else 0

    @property
    def score(self) -> float | None:
        """Its newest objective: of a trial that was stopped, that at the rung where it was."""
        judged = [rung.objective for rung in self.history if rung.objective is not None]
        return self.objective if self.objective is not None else judged[-1] if judged else None

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.began


Scored = list[tuple[Trial, float]]


@dataclass(frozen=True)
class SearchSnapshot:
    """A search as its files describe it. `outcome` is None while it runs, or if its driver was killed."""

    uri: str
    search_id: str
    created: float
    command: str
    options: str  # of a command that repeats it
    recipe: Mapping[str, Any]
    slots: int
    planned_trials: int
    tracking: str
    mlflow_path: str  # the parent's; empty as a trial's
    dashboard: str
    trials: tuple[Trial, ...]
    finals: tuple[Trial, ...]
    outcome: Mapping[str, Any] | None
    last_heartbeat: float = field(default=0.0, compare=False)  # of its driver, which is not news; 0: none yet

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe's search table."""
        table: Mapping[str, Any] = self.recipe["search"]
        return table

    @property
    def space(self) -> Mapping[str, Mapping[str, Any]]:
        """What is varied, by dotted place: {low, high, log} or {choices}."""
        space: Mapping[str, Mapping[str, Any]] = self.settings["space"]
        return space

    @property
    def pauses(self) -> bool:
        """Whether trials waited at rungs for one another."""
        return bool(self.settings["searcher"] == "pbt" or self.settings["scheduler"] == "hyperband")

    @property
    def metric(self) -> str:
        """The name of the objective."""
        return objective_name(str(self.settings["metric"]))

    def of_status(self, *statuses: str) -> list[Trial]:
        """The trials of these statuses, in order of their numbers."""
        return [trial for trial in self.trials if trial.status in statuses]

    @property
    def ranked(self) -> list[Trial]:
        """The trials that finished with a score, the best first; the scores of others cannot be compared with these."""
        scored = [trial for trial in self.of_status(DONE) if trial.objective is not None]
        return sorted(scored, key=_objective)

    @property
    def final_scores(self) -> Scored:
        """The trials that finished, with their scores, the best first."""
        return [(trial, trial.objective) for trial in self.ranked if trial.objective is not None]

    @property
    def comparable_scores(self) -> tuple[str, Scored]:
        """The point at which most trials can be compared, in words, and their scores there.

        Scores after different shares of the schedule cannot be compared: where some trials were stopped, it is the last
        rung at which all of them and all that finished were judged; else the end. Trials may differ in the steps
        between rungs.
        """
        heights = [len(trial.history) for trial in (*self.of_status(STOPPED), *self.ranked) if trial.history]
        if not self.of_status(STOPPED) or not heights:
            return "at the end", self.final_scores
        height = min(heights)
        reached = [(t, t.history[height - 1]) for t in self.of_status(DONE, STOPPED) if len(t.history) >= height]
        steps = {rung.step for _, rung in reached}
        words = f"after {min(steps):,} steps" if len(steps) == 1 else f"at rung {height} of {self.settings['rungs']}"
        return words, [(trial, rung.objective) for trial, rung in reached if rung.objective is not None]

    @property
    def last_news(self) -> float:
        """When anything was last written about a trial."""
        times = [trial.ended or max(trial.began, trial.last_report) for trial in (*self.trials, *self.finals)]
        return max(times, default=self.created)

    def active_until(self, now: float) -> float:
        """Until when it was certainly active: `now`, or its last news if it is over, or without news for too long.

        A search that was killed writes nothing more, and its driver has no heartbeat.
        """
        if self.outcome is not None:
            return self.last_news
        return self.last_news if now - max(self.last_news, self.last_heartbeat) > SILENT_S else now


def read_search(uri: str, *, before: SearchSnapshot | None = None) -> SearchSnapshot:
    """Read a search from its folder or URI, STORAGE/SEARCH_ID; trials that were over in `before` are not read again.

    Called by reports and by the dashboard, also while the search runs. Raises ValueError where there is no search, or
    where one of its files is not what a search writes; OSError where the store stays unavailable.
    """
    known = {trial.name: trial for trial in (*before.trials, *before.finals) if trial.over} if before else {}
    finished = {name: trial.mlflow_path for name, trial in known.items()}
    try:
        files = SearchStore(uri, patience_s=PATIENCE_S).read_all(finished=finished)
        if files is None:
            raise ValueError(f"search {uri!r}: no {DEFINITION} there; give a search's folder or URI, STORAGE/SEARCH_ID")
        return _search(uri, files, known)
    except (KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(
            f"search {uri!r}: its files are not as a search writes them ({type(wrong).__name__}: {wrong})"
        ) from None


def _search(uri: str, files: SearchFiles, known: Mapping[str, Trial]) -> SearchSnapshot:
    definition, ended = files.definition, files.outcome is not None
    # cluster.json is written a while after search.json
    not_yet = {"slots": 1, "dashboard": "", "trials": definition["recipe"]["search"]["trials"]}
    cluster = not_yet if files.cluster is None else files.cluster
    return SearchSnapshot(
        uri=uri,
        search_id=definition["search_id"],
        created=float(definition["created"]),
        command=definition["command"],
        options=definition.get("options", ""),
        recipe=definition["recipe"],
        slots=int(cluster["slots"]),
        planned_trials=int(cluster["trials"]),
        tracking=definition["tracking"],
        mlflow_path=files.mlflow_paths.get("", ""),
        dashboard=cluster["dashboard"],
        trials=_trials(files.trials, known, ended=ended),
        finals=_trials(files.finals, known, ended=ended),
        outcome=files.outcome,
        last_heartbeat=files.last_heartbeat,
    )


def _trials(files: Sequence[TaskFiles], known: Mapping[str, Trial], *, ended: bool) -> tuple[Trial, ...]:
    """The trials by number; folders that hold no file yet are left out."""
    trials = []
    for task in files:
        if task.unchanged:
            trials.append(known[task.name])
        elif task.result is not None:
            trials.append(_finished(task, task.result))
        elif task.settings is not None:
            trials.append(_unfinished(task, task.settings, INTERRUPTED if ended else RUNNING))
    return tuple(sorted(trials, key=lambda trial: (trial.number, trial.name)))


def _unfinished(files: TaskFiles, settings: Mapping[str, Any], status: str) -> Trial:
    rungs: Mapping[str, Any] = {"history": [], "told": 0.0} if files.rungs is None else files.rungs
    return Trial(
        name=files.name,
        number=int(settings["number"]),
        kind=settings["kind"],
        settings=settings["settings"],
        began=float(settings["began"]),
        status=status,
        seed=settings.get("seed"),
        slot=settings.get("slot"),
        history=_rungs(rungs["history"]),
        last_report=float(rungs["told"]),
        mlflow_path=files.mlflow_path,
    )


def _finished(files: TaskFiles, result: Mapping[str, Any]) -> Trial:
    return Trial(
        name=files.name,
        number=int(result["number"]),
        kind=result["kind"],
        settings=result["settings"],
        began=float(result["began"]),
        status=result["status"],
        ended=float(result["ended"]),
        seed=result.get("seed"),
        reason=result["reason"],
        objective=_finite(result["objective"]),
        second=_finite(result["second"]),
        history=_rungs(result["history"]),
        loop_seconds=float(result["loop_seconds"]),
        host=result["host"],
        slot=result.get("slot"),
        mlflow_path=files.mlflow_path,
        test=result.get("test"),
    )


def _rungs(history: list[dict[str, Any]]) -> tuple[RungScore, ...]:
    rungs = [RungScore(int(rung["step"]), _finite(rung["objective"]), rung.get("values", {})) for rung in history]
    return tuple(sorted(rungs, key=lambda rung: rung.step))


def _finite(value: Any) -> float | None:
    """A score that can be compared: None where it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _objective(trial: Trial) -> float:
    assert trial.objective is not None
    return trial.objective
