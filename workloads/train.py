"""The training loop. There is one, whatever the method.

It runs the phases of the recipe's schedule. Methods differ in their schedule (`distill/schedule.py`), their edges
(`distill/edges.py`) and where teacher outputs come from (`distill/sources.py`): a new method adds to one of these,
never a second loop.

`loop` trains, scores and delivers, `advance` goes through phases and steps. What comes before the first step, records
and checkpoints are in `run.py`, one step is in `train_step.py`.
"""

import time
from collections.abc import Generator, Iterator
from typing import Any

from workloads.distill.schedule import Phase, smooth_scores
from workloads.distill.sources import TeacherSource
from workloads.evaluate import metrics
from workloads.evaluate.deliver import deliver_models
from workloads.evaluate.mistakes import mistakes
from workloads.evaluate.predict import raised_on_all, score_clips
from workloads.evaluate.shown_profiles import shown_clips, spectrograms
from workloads.evaluate.step_metrics import mean_times
from workloads.run import Run, record_cost, report, save
from workloads.runtime import checkpoint
from workloads.runtime.session import StepTimes
from workloads.train_step import train_step


def loop(run: Run, *, until: int | None = None) -> str:
    """Train all phases, then score and deliver the models; returns "done".

    Returns "preempted" where the session asked the run to stop, or `until` steps are done: a checkpoint is saved.
    """
    resumed_from = run.step
    for _ in advance(run, until=until):
        pass
    if run.step < run.phases[-1].end:
        return "preempted"
    delivered = deliver_models(run.recipe, run.pool, run.prepared, run.placement, run.session)
    if delivered.profiles:
        shown, seconds = spectrograms(shown_clips(run.prepared), run.prepared), run.recipe.data.clip_seconds
        run.record("profiles", step=run.step, seconds=seconds, clips=shown, models=delivered.profiles)
    if delivered.predictions:
        clips = mistakes(delivered.predictions, run.prepared, count=run.recipe.train.report_clips)
        run.record("mistakes", step=run.step, clips=clips)
    record_cost(run, "scoring")
    run.record("result", steps=run.step, resumed_from_step=resumed_from, models=delivered.rows)
    report(run)
    return "done"


def advance(run: Run, *, until: int | None = None) -> Iterator[int]:
    """Train the phases that are left; yields the number of steps done after each validation.

    Ends before the last planned step where the session asks the run to stop, or `until` steps are done.
    """
    report(run)  # the first records: useful even if the first step fails
    last = run.phases[-1].end if until is None else min(until, run.phases[-1].end)
    own_phases = [phase for phase in run.phases if run.placement.holds_any(phase.needs)]
    steps = (step for phase in own_phases for step in range(max(run.step, phase.start), min(last, phase.end)))
    with run.batches.loaded_ahead(steps, run.shards, run.session.device):
        for index, phase in enumerate(run.phases):
            if phase.end <= run.step:
                continue
            if until is not None and run.step >= until:
                return
            sources = run.pool.enter_phase(phase, step=run.step)
            run.record("phase", **_phase_fields(run, index))  # collective
            stopped = yield from _train_phase(run, phase, sources, until=until)
            if stopped:
                return


def _train_phase(
    run: Run, phase: Phase, sources: dict[str, TeacherSource], *, until: int | None
) -> Generator[int, None, bool]:
    """Train the steps of one phase that are left; validates, saves and reports when due.

    Yields the number of steps done after each validation; returns whether the run is to stop.
    """
    train = run.recipe.train
    while run.step < phase.end:
        log_metrics = run.step == 0 or (run.step + 1) % train.log_every == 0
        step_metrics = _timed_step(run, phase, sources, log_metrics=log_metrics)
        run.step += 1
        if step_metrics:
            _record_metrics(run, step_metrics)
            run.record("timings", step=run.step, values=mean_times(run.times, train.batch_size))
            run.times = []
        phase_ends = run.step == phase.end
        validate = phase_ends or run.step % train.eval_every == 0
        if validate:
            _validate(run, phase)
        stop = run.session.should_stop() or run.step == until
        if stop or phase_ends or run.step % train.checkpoint_every == 0:
            save(run)
        elif log_metrics:
            report(run)
        if stop:
            return True
        if validate:
            yield run.step
    return False


def _timed_step(run: Run, phase: Phase, sources: dict[str, TeacherSource], *, log_metrics: bool) -> dict[str, float]:
    """`train_step`; what it took goes to the session, and with those of other steps into a record."""
    began, waited_s, teachers_s = time.perf_counter(), run.batches.waited_s, run.teachers_s
    step_metrics = train_step(run, phase, sources, log_metrics=log_metrics)
    own = filter(run.placement.holds, phase.trains)
    exchange = {name: run.pool.states[name].exchange_seconds() for name in own} if log_metrics else {}
    times = StepTimes(
        step=time.perf_counter() - began,
        data_wait=run.batches.waited_s - waited_s,
        teacher=run.teachers_s - teachers_s,
        clips=len(run.shards) * run.recipe.train.shard_size * run.placement.holds_any(phase.needs),
        exchange={name: seconds for name, seconds in exchange.items() if seconds is not None},
    )
    run.session.on_step(run.step + 1, times)
    run.times.append(times)
    return step_metrics


def _validate(run: Run, phase: Phase) -> None:
    """Score the students on the validation slice, if there is one. All workers use the same scores, those of the first
    that holds a student: edge weights may follow them."""
    if not run.prepared.splits.val:
        return
    values: dict[str, float] = {}
    primary: dict[str, float] = {}
    for name, (own_step, scores) in _scores_of_students(run, phase).items():
        primary[name] = scores[metrics.primary(run.recipe.data.labels)]
        run.validated[name] = (own_step, primary[name])
        if run.placement.holds(name):
            student = run.pool.states[name]
            student.average.on_validation(primary[name], student.tagger)
        values |= {f"{name}/val/{key}": value for key, value in scores.items()}
    run.smoothed_scores = smooth_scores(run.recipe, run.smoothed_scores, primary)
    _record_metrics(run, values)


def _scores_of_students(run: Run, phase: Phase) -> dict[str, tuple[int, dict[str, float]]]:
    """Of each student its own step and its scores; a collective call. Those that hold a student share the clips."""

    def own_scores() -> dict[str, tuple[int, dict[str, float]]]:
        students = {name: run.pool.states[name] for name in phase.trains if run.placement.holds(name)}
        clips, workers = run.prepared.splits.val, run.placement.workers
        return {
            name: (
                student.own_step,
                score_clips(student.evaluation_tagger, clips, run.prepared, workers, autocast=run.pool.autocast),
            )
            for name, student in students.items()
        }

    everyone = run.placement.everyone
    workers = everyone.gather(raised_on_all(everyone, own_scores))
    return {name: next(found[name] for found in workers if name in found) for name in phase.trains}


def _record_metrics(run: Run, values: dict[str, float]) -> None:
    run.record("metrics", step=run.step, values=values)


def _phase_fields(run: Run, index: int) -> dict[str, Any]:
    phase = run.phases[index]
    own = {name: checkpoint.weights_digest(tagger.state_dict()) for name, tagger in run.pool.snapshots.items()}
    snapshots = {name: digest for found in run.placement.everyone.gather(own) for name, digest in found.items()}
    return {
        "step": phase.start,
        "index": index,
        "of": len(run.phases),
        "steps": phase.steps,
        "total": run.phases[-1].end,
        "trains": list(phase.trains),
        "edges": [{"key": edge.key, **vars(edge)} for edge in phase.edges],
        "snapshots": snapshots,
    }
