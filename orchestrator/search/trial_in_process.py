"""A trial run from rung to rung in the process that calls, without Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.runs.checkpoint_store import CheckpointStore, NewestAt, step_of
from orchestrator.runs.lease import Driver, take_unconditionally
from orchestrator.search.rungs import (
    SETTING_PREFIX,
    LoopTimer,
    RungReport,
    RungScore,
    delivery_fields,
    forwarded_records,
    mean_validation_scores,
    objective,
    rung_steps,
    second_objective,
)
from orchestrator.search.store import PATIENCE_S, SearchStore
from orchestrator.search.trial_spec import SearchPlan, Task, build_task_recipe, keeps_checkpoints
from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import retry_while_unavailable
from workloads.runtime.event_log import EVENT_LOG, EventLog


def run_rungs_in_process(
    plan: SearchPlan, task: Task, store: SearchStore, scratch: Path, timer: LoopTimer, *, start: str
) -> Iterator[RungReport]:
    """Train a task from rung to rung; a report at each.

    Runs in a process of Tune's that is reused from trial to trial. Between two rungs the caller may stop iterating,
    which ends the trial. A kill leaves the checkpoints of past rungs, where the task keeps any: the next call resumes
    from the checkpoint at `start`, another trial's, or else from the newest.
    """
    steps = rung_steps(build_task_recipe(plan, task), plan.search)
    kept_steps = tuple(steps) if keeps_checkpoints(plan.search, task) else ()
    checkpoints = open_checkpoints(store, task, Driver(), steps=kept_steps, start=start)
    if kept_steps:
        checkpoints.collect_garbage()
    runs = _SliceRuns(plan, task, checkpoints, scratch)
    # Tune restarts a trial from the checkpoint of its last report; a final resumes from its newest, reported or not
    reported = _last_reported_step(store, task) if task.hyperparameter_history else runs.step
    num_forwarded = _num_records_until(reported, runs.records)
    for step in steps:
        runs.advance_to(step, timer)
        score = runs.score(step)
        final_fields = _final_fields(plan, task, runs) if step == steps[-1] else None
        all_records = runs.records  # of the first slice: the other slices would draw the same curves
        records: list[dict[str, Any]] = []
        if step > reported:  # those of earlier rungs were forwarded before the pause
            records = [record for record in all_records[num_forwarded:] if record["kind"] != "data"]
            num_forwarded = len(all_records)
        yield RungReport(
            score,
            records,
            already_reported=step <= reported,
            final_fields=final_fields,
            checkpoint_uri=checkpoints.newest_uri if task.kind == "trial" else "",  # no trial resumes from a final's
        )


class _SliceRuns:
    """The training runs of a task, one for each validation slice, one after the other in this process."""

    def __init__(self, plan: SearchPlan, task: Task, checkpoints: CheckpointStore, scratch: Path) -> None:
        self._plan, self._task, self._checkpoints, self._scratch = plan, task, checkpoints, scratch
        self._slices = range(plan.search.slices if task.uses_all_slices else 1)
        self._runs: list[Any] = []
        self._iterators: list[Iterator[int]] = []
        self._settings: dict[str, Any] = {}  # in effect
        self._set_up(checkpoints.newest_step())

    @property
    def first(self) -> Any:
        """The run on the first slice."""
        return self._runs[0]

    @property
    def step(self) -> int:
        return int(self.first.step)

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the run on the first slice has recorded; since its first step, also where it was resumed."""
        return forwarded_records(self.first.history.path)

    def advance_to(self, step: int, timer: LoopTimer) -> None:
        """Train all slices up to `step`, with the settings that hold from where they are."""
        if self._task.settings_at(self.step) != self._settings:  # resume from the checkpoint here, with the next values
            self._set_up(self.step)
        for run, iterator in zip(self._runs, self._iterators, strict=True):
            with timer.running():
                while run.step < step:
                    next(iterator)

    def score(self, step: int) -> RungScore:
        values = mean_validation_scores([forwarded_records(run.history.path) for run in self._runs], step)
        return RungScore(step, objective(self._plan.search, self.first.recipe, values), values)

    def _set_up(self, step: int) -> None:
        """Make the runs anew, with the settings that hold at `step`, from the newest checkpoint that is whole.

        Where that is one of an earlier step with other settings, because the newest was damaged, once more with those.
        """
        from workloads.train import advance

        self._clear()
        resumed_from = self._make_runs(step)
        if self._task.settings_at(resumed_from) != self._task.settings_at(step):
            self._set_up(resumed_from)
            return
        self._iterators = [advance(run) for run in self._runs]
        self._settings = self._task.settings_at(self.step)

    def _make_runs(self, step: int) -> int:
        folder = self._scratch / str(step)
        self._runs = [
            _set_up_run(
                self._plan, self._task, self._checkpoints, folder / str(number), slice_=number, settings_step=step
            )
            for number in self._slices
        ]
        return self.step

    def _clear(self) -> None:
        """Release the models before others take as much memory."""
        self._iterators.clear()
        self._runs.clear()


def _set_up_run(
    plan: SearchPlan, task: Task, checkpoints: CheckpointStore, folder: Path, *, slice_: int, settings_step: int
) -> Any:
    """A training run on one slice, restored from the newest whole checkpoint; with the settings of `settings_step`."""
    from workloads.run import set_up
    from workloads.runtime.session import LocalSession

    recipe = build_task_recipe(plan, task, slice_=slice_, step=settings_step)
    session = LocalSession(
        work_dir=folder / "scratch",
        event_log=EventLog(folder / EVENT_LOG),
        store=checkpoints,
        device=recipe.train.device,
    )
    run = set_up(recipe, session, files=FsspecFiles())
    if plan.search.searcher == "pbt":  # its settings change at rungs: a record of each value; all of them are numbers
        values = {SETTING_PREFIX + place: float(value) for place, value in task.settings_at(run.step).items()}
        run.record("metrics", step=run.step + 1, values=values)
    return run


def _final_fields(plan: SearchPlan, task: Task, runs: _SliceRuns) -> dict[str, Any]:
    """What a result holds beside scores, once all steps are done; a task that scores the test fold delivers its models
    here."""
    from workloads.train import loop

    run = runs.first
    fields: dict[str, Any] = {"second": second_objective(plan.search, run.recipe, len(run.prepared.dataset.tags))}
    if plan.search.searcher == "pbt" and task.kind == "trial":
        fields["course"] = _hyperparameter_history(runs.records)
    if task.scores_test_fold:
        loop(run)  # no step is left: it scores and delivers
        fields |= delivery_fields(runs.records)
    return fields


def _last_reported_step(store: SearchStore, task: Task) -> int:
    """The last rung that a task reported before its process was lost; 0: none."""
    rungs = store.read_rungs(task)
    return rungs["history"][-1]["step"] if rungs else 0


def _num_records_until(step: int, records: list[dict[str, Any]]) -> int:
    """How many of a run's records are from before the rung at `step`; 0 at step 0."""
    return sum(record.get("step", record.get("steps", 0)) <= step for record in records) if step else 0


def _hyperparameter_history(records: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The settings that led here, each with the step from which it held; empty where they never changed."""
    history: list[tuple[int, dict[str, float]]] = []
    for record in records:
        values = record.get("values", {})
        settings = {
            key.removeprefix(SETTING_PREFIX): value for key, value in values.items() if key.startswith(SETTING_PREFIX)
        }
        if settings and (not history or history[-1][1] != settings):
            history.append((record["step"] - 1, settings))
    return history if len(history) > 1 else []


def align_to_common_rung(plan: SearchPlan, tasks: list[Task], store: SearchStore) -> int:
    """Take trials that wait for one another back to the newest rung that all of them can resume from; its number.

    Called once by the driver, before Tune starts them. Claims every trial, so that a process of an earlier driver can
    commit nothing more, then removes the checkpoints of later rungs; a kill in between leaves some of them, which the
    next call removes.
    """
    driver, steps = Driver(), rung_steps(build_task_recipe(plan, tasks[0]), plan.search)
    stores = [open_checkpoints(store, task, driver, steps=tuple(steps)) for task in tasks]
    names = [checkpoints.names() for checkpoints in stores]
    common = max(set.intersection(*({*_resumable_steps(own)} for own in names)), default=0)
    for checkpoints, own in zip(stores, names, strict=True):
        for name in own:
            if step_of(name) > common:
                checkpoints.remove(name)
    return steps.index(common) + 1 if common else 0


def _resumable_steps(names: list[str]) -> list[int]:
    """The steps at which a trial resumes once all later checkpoints are removed; `names` as in resume order."""
    steps = [step_of(name) for name in names]
    return [step for step in steps if next(other for other in steps if other <= step) == step]


def open_checkpoints(
    store: SearchStore, task: Task, driver: Driver, *, steps: tuple[int, ...] = (), start: str = ""
) -> CheckpointStore:
    """Claim a task's folder for this process: its checkpoints at `steps`, and the taggers it delivers.

    Tune runs a task in one process at a time, so the claim needs no waiting; the process before can commit no more.
    """
    uri = object_store.join(store.uri, task.folder)
    claim = retry_while_unavailable(lambda: take_unconditionally(uri, driver), what=uri, patience_s=PATIENCE_S)
    return CheckpointStore(claim, retention=NewestAt(steps), patience_s=PATIENCE_S, start=start)
