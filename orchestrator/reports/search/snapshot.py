"""What a search has left in its folder, as frozen values: its trials, its finals, its outcome. Draws nothing.

It asks no server and no process: what is told here can be told as well long after the search. Of a search that goes on,
a later reading reads only what was not over before (`before`).
"""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from orchestrator.search.store import OUTCOME
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.tracking.nested_runs import RUN_IDS_FILE
from workloads.config.search import objective_name

PATIENCE_S = 5.0  # for a store that is away for a moment
SILENT_S = 180.0  # without news of a trial, and without a beat of its driver, which has one every ten seconds
READERS = 8  # at once: an object store takes its time for each of some hundred small files
RUNNING, DONE, STOPPED, FAILED, INTERRUPTED = "running", "done", "stopped", "failed", "interrupted"


@dataclass(frozen=True)
class Rung:
    """How a trial stood after so many steps; `objective` is to be minimised."""

    step: int
    objective: float | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One trial or final run; times in seconds since the epoch. Without a result it runs, or was interrupted."""

    name: str
    number: int
    kind: str  # trial, finalist, winner or control
    settings: Mapping[str, Any]
    began: float
    status: str
    ended: float | None = None
    seed: int | None = None  # None: the recipe's own
    reason: str = ""
    objective: float | None = None
    second: float | None = None
    history: tuple[Rung, ...] = ()
    told: float = 0.0  # when it last said how it stood; 0: it has not
    loop_seconds: float = 0.0
    host: str = ""
    slot: int | None = None
    mlflow_run_id: str = ""  # empty: nothing is tracked, or not yet told
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
        """How it was judged last: for a trial that was stopped, at the rung where it was."""
        judged = [rung.objective for rung in self.history if rung.objective is not None]
        return self.objective if self.objective is not None else judged[-1] if judged else None

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.began


Scored = list[tuple[Trial, float]]


@dataclass(frozen=True)
class Search:
    """A search as its folder tells it. `outcome` is None while it runs, or if it was killed."""

    uri: str
    search_id: str
    created: float
    command: str
    recipe: Mapping[str, Any]
    slots: int
    wanted: int  # trials that there are to be
    tracking: str
    mlflow_run_id: str  # the parent's; empty as a trial's
    dashboard: str
    trials: tuple[Trial, ...]
    finals: tuple[Trial, ...]
    outcome: Mapping[str, Any] | None
    last_beat: float = field(default=0.0, compare=False)  # of its driver, which is no news; 0: none yet

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
        """What the objective is called."""
        return objective_name(str(self.settings["metric"]))

    def of_status(self, *statuses: str) -> list[Trial]:
        """The trials of these statuses, in order of their numbers."""
        return [trial for trial in self.trials if trial.status in statuses]

    @property
    def ranked(self) -> list[Trial]:
        """The trials that came to their end with a score, the best first: the others' scores are not comparable."""
        scored = [trial for trial in self.of_status(DONE) if trial.objective is not None]
        return sorted(scored, key=_objective)

    @property
    def ended(self) -> Scored:
        """The trials that came to their end, with their scores, the best first."""
        return [(trial, trial.objective) for trial in self.ranked if trial.objective is not None]

    @property
    def compared(self) -> tuple[str, Scored]:
        """Where most trials can be compared, in words, and their scores there.

        Scores at different shares of the way are not comparable: where some trials were stopped, it is the last rung
        that all of them and all that ended were judged at; else the end. Trials may differ in the steps between rungs.
        """
        heights = [len(trial.history) for trial in (*self.of_status(STOPPED), *self.ranked) if trial.history]
        if not self.of_status(STOPPED) or not heights:
            return "at the end", self.ended
        height = min(heights)
        reached = [(t, t.history[height - 1]) for t in self.of_status(DONE, STOPPED) if len(t.history) >= height]
        steps = {rung.step for _, rung in reached}
        words = f"after {min(steps):,} steps" if len(steps) == 1 else f"at rung {height} of {self.settings['rungs']}"
        return words, [(trial, rung.objective) for trial, rung in reached if rung.objective is not None]

    @property
    def last_news(self) -> float:
        """When anything was last written about a trial."""
        times = [trial.ended or max(trial.began, trial.told) for trial in (*self.trials, *self.finals)]
        return max(times, default=self.created)

    def until(self, now: float) -> float:
        """How long it can be said to have lasted: to its last news if it is over or has been silent for too long.

        A search that was killed says nothing more, and its driver's heart stands still.
        """
        if self.outcome is not None:
            return self.last_news
        return self.last_news if now - max(self.last_news, self.last_beat) > SILENT_S else now


def read_search(uri: str, *, before: Search | None = None) -> Search:
    """Read a search's folder or URI, STORAGE/SEARCH_ID; what was over in `before` is taken from there.

    Raises ValueError where no search is, or where one of its files is not what a search writes.
    """
    return retry_while_unavailable(lambda: _search(uri, before), what=f"search {uri}", patience_s=PATIENCE_S)


def _search(uri: str, before: Search | None) -> Search:
    head_uri = object_store.join(uri, "search.json")
    if not object_store.exists(head_uri):
        raise ValueError(f"search {uri!r}: no search.json there; give a search's folder or URI, STORAGE/SEARCH_ID")
    head = _json(head_uri)
    outcome = _json_or(object_store.join(uri, OUTCOME), None)  # before the trials: they are complete then
    names = _json_or(object_store.join(uri, RUN_IDS_FILE), {})
    ended = outcome is not None
    try:
        trials = _read_all(object_store.join(uri, "trials"), ended, before.trials if before else (), names)
        finals = _read_all(object_store.join(uri, "finals"), ended, before.finals if before else (), names)
        begun = {"slots": 1, "dashboard": "", "trials": head["recipe"]["search"]["trials"]}  # it has told no more yet
        cluster = _json_or(object_store.join(uri, "cluster.json"), begun)
        return Search(
            uri=uri,
            search_id=head["search_id"],
            created=float(head["created"]),
            command=head["command"],
            recipe=head["recipe"],
            slots=int(cluster["slots"]),
            wanted=int(cluster["trials"]),
            tracking=head["tracking"],
            mlflow_run_id=names.get("", ""),
            dashboard=cluster["dashboard"],
            trials=trials,
            finals=finals,
            outcome=outcome,
            last_beat=0.0 if ended else _last_beat(object_store.join(uri, "attempts")),
        )
    except (KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(
            f"search {uri!r}: its files are not as a search writes them ({type(wrong).__name__}: {wrong})"
        ) from None


def _read_all(uri: str, ended: bool, before: tuple[Trial, ...], names: dict[str, str]) -> tuple[Trial, ...]:
    known = {trial.name: trial for trial in before if trial.over and trial.mlflow_run_id == names.get(trial.name, "")}
    with ThreadPoolExecutor(READERS) as readers:
        read = readers.map(lambda name: known.get(name) or _read(uri, name, ended, names), object_store.list_names(uri))
        found = [trial for trial in read if trial is not None]
    return tuple(sorted(found, key=lambda trial: (trial.number, trial.name)))


def _read(uri: str, name: str, ended: bool, names: dict[str, str]) -> Trial | None:
    """A trial from its result, else from its settings; None for a folder that holds neither (yet)."""
    result, settings = object_store.join(uri, name, "result.json"), object_store.join(uri, name, "settings.json")
    if object_store.exists(result):
        return _finished(name, _json(result), names.get(name, ""))
    if not object_store.exists(settings):
        return None
    begun = _json(settings)
    rungs = _json_or(object_store.join(uri, name, "rungs.json"), {"history": [], "told": 0.0})
    return Trial(
        name=name,
        number=int(begun["number"]),
        kind=begun["kind"],
        settings=begun["settings"],
        began=float(begun["began"]),
        status=INTERRUPTED if ended else RUNNING,
        seed=begun.get("seed"),
        slot=begun.get("slot"),
        history=_rungs(rungs["history"]),
        told=float(rungs["told"]),
        mlflow_run_id=names.get(name, ""),
    )


def _finished(name: str, result: dict[str, Any], mlflow_run_id: str) -> Trial:
    return Trial(
        name=name,
        number=int(result["number"]),
        kind=result["kind"],
        settings=result["settings"],
        began=float(result["began"]),
        status=result["status"],
        ended=float(result["ended"]),
        seed=result.get("seed"),
        reason=result.get("reason", ""),
        objective=_number(result.get("objective")),
        second=_number(result.get("second")),
        history=_rungs(result.get("history", [])),
        loop_seconds=float(result.get("loop_seconds") or 0.0),
        host=result.get("host") or "",
        slot=result.get("slot"),
        mlflow_run_id=mlflow_run_id,
        test=result.get("test"),
    )


def _last_beat(uri: str) -> float:
    """When a driver of the search last showed that it lives."""
    beats = [name for name in object_store.list_names(uri) if name.endswith(".beat")]
    return max((object_store.modified_at(object_store.join(uri, name)).timestamp() for name in beats), default=0.0)


def _rungs(history: list[dict[str, Any]]) -> tuple[Rung, ...]:
    rungs = [Rung(int(rung["step"]), _number(rung["objective"]), rung.get("values", {})) for rung in history]
    return tuple(sorted(rungs, key=lambda rung: rung.step))


def _json_or(uri: str, default: Any) -> Any:
    return _json(uri) if object_store.exists(uri) else default


def _json(uri: str) -> Any:
    try:
        read = json.loads(object_store.get_text(uri))
    except json.JSONDecodeError as error:
        raise ValueError(f"file {uri!r}: is not JSON ({error}); it was damaged or written by something else") from None
    return read


def _number(value: Any) -> float | None:
    """A score that can be compared: what is missing or not finite is none."""
    return float(value) if value is not None and math.isfinite(value) else None


def _objective(trial: Trial) -> float:
    assert trial.objective is not None
    return trial.objective
