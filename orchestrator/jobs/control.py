"""Submitting, following and stopping a job by its name: `antiphon submit`, `logs` and `stop`.

A job is called as the run or search that it works on. Ray takes an id once, also after the job has ended, so the second
job of a name is NAME-2: each goes on with what the one before has left.
"""

import itertools
import json
import math
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.spec import ID_OPTIONS
from orchestrator.jobs.client import IdTaken, Jobs, JobState, RefusedByRay
from orchestrator.jobs.submission import (
    MODULE,
    Submission,
    entrypoint,
    local_python,
    metadata,
    pack_folder,
    runtime_env,
)
from orchestrator.storage.retry import Unavailable

POLL_S = 1.0
LOST_S = 60.0  # how long a dashboard may be away while a job is followed
ASK_AGAIN_S = 15.0  # a driver looks for the request every ten
KILLED_S = 30.0  # Ray kills a job that does not end by itself after three
STOP = "stop"  # the command of a job that asks another one to stop; `antiphon jobs` leaves it out
NOTHING_TO_STOP = 2  # the exit code of `antiphon stop` where none works on a run or search
TRY_AGAIN = 75  # the exit code of a job that another one may go on with
WORDS = {"antiphon": "command", "uri": "place", "recipe": "recipe"}  # of what the metadata say


def jobs_named(jobs: Jobs, name: str) -> list[JobState]:
    """The jobs of a name, the newest first; ValueError where there is none."""
    found = [job for job in jobs.all() if job.metadata.get("name") == name or job.id == name]
    if not found:
        raise ValueError(f"job {name!r}: there is none on {jobs.address}; `antiphon jobs` lists them")
    return found


def submit(jobs: Jobs, submission: Submission, *, say: Callable[[str], Any]) -> str:
    """Start a job, or find the one of this name that has not ended; returns its id in the cluster.

    `say` is told what is sent. A kill before the cluster has the job leaves nothing, a kill after it changes nothing.
    """
    submission = replace(submission, python=submission.python or local_python(jobs.address))
    while True:
        known = jobs.all()
        named = [job for job in known if job.metadata.get("name") == submission.name]
        running = next((job for job in named if not job.ended), None)
        if running is not None:
            _require_same_work(running, submission)
            say(f"job {running.id} is {running.status.lower()} already")
            return running.id
        taken = {job.id for job in known}
        numbered = (f"{submission.name}-{number}" for number in itertools.count(2))
        job_id = next(free for free in itertools.chain([submission.name], numbered) if free not in taken)
        with tempfile.TemporaryDirectory() as folder:
            size = pack_folder(submission, Path(folder))
            described = {"runtime_env": runtime_env(submission, Path(folder)), "metadata": metadata(submission)}
            try:
                jobs.submit(job_id, entrypoint(submission), **described)
            except IdTaken:  # another command was faster
                continue
        say(f"job {job_id} is submitted to {jobs.address}, with {size / 1e6:.2f} MB of files")
        return job_id


def _require_same_work(job: JobState, submission: Submission) -> None:
    """ValueError where the running job of this name works on something else."""
    for key, value in metadata(submission).items():
        if key in ("antiphon", "uri", "recipe") and job.metadata.get(key) != value:
            was = job.metadata.get(key)
            raise ValueError(
                f"--id {submission.name!r}: job {job.id}, which runs, has another {WORDS[key]} ({was}, not {value}); "
                "choose another id, or stop it first"
            )


def follow(jobs: Jobs, job_id: str, write: Callable[[str], Any]) -> int:
    """Write what a job prints from its beginning until it ends, and return its exit code.

    A connection that breaks is made again for `LOST_S` seconds.
    """
    written, lost_at = 0, math.inf  # written: characters
    while True:
        read = 0
        try:
            for text in jobs.follow(job_id):
                read += len(text)
                if read > written:
                    write(text[written - read :])
                    written = read
            job = jobs.state(job_id)
            if job is None or job.ended:
                write(jobs.log(job_id)[written:] if job else "")  # lines that came after the connection was closed
                return exit_code(job)
            lost_at = math.inf
        except (Unavailable, RefusedByRay):  # a dashboard that restarts closes connections in either way
            lost_at = min(lost_at, time.monotonic())
            if time.monotonic() - lost_at > LOST_S:
                raise
        time.sleep(POLL_S)


def exit_code(job: JobState | None) -> int:
    """The exit code of a job that has ended: its driver's; 75 where it was stopped, or went with its driver's node."""
    if job is None:
        return 1
    if job.exit_code is not None:
        return job.exit_code
    return 0 if job.status == "SUCCEEDED" else TRY_AGAIN


def stop(jobs: Jobs, name: str, *, patience_s: float, say: Callable[[str], Any]) -> bool:
    """Have a job save and end; after `patience_s` seconds it is terminated. Returns whether it ended by itself.

    What it works on is asked to stop by a file in its storage, which a second job writes, since this machine may have
    no credentials; asked again until it ends, since a driver that has just begun does not know of it. Ray itself gives
    a job three seconds between SIGTERM and SIGKILL: enough for `teach` while it fills its store, which loses the shards
    that are computed, and not for the runs of teachers that it trains before.
    """
    job = jobs_named(jobs, name)[0]
    if job.ended:
        say(f"job {job.id} has ended: {job.status.lower()}")
        return True
    uris = _can_be_asked(job)
    deadline = time.monotonic() + patience_s
    while uris and not _has_ended(jobs, job.id, within_s=0) and time.monotonic() < deadline:
        code = _ask_to_stop(jobs, job, uris, say, within_s=deadline - time.monotonic())
        if code == NOTHING_TO_STOP and job.metadata["antiphon"] not in ID_OPTIONS:
            break  # no teacher is in training
        _has_ended(jobs, job.id, within_s=min(ASK_AGAIN_S, deadline - time.monotonic()))
    if _has_ended(jobs, job.id, within_s=0):
        say(f"job {job.id} has ended")
        return True
    say(f"job {job.id} is terminated: what it has committed stays")
    jobs.stop(job.id)
    _has_ended(jobs, job.id, within_s=KILLED_S)
    return False


def _can_be_asked(job: JobState) -> list[str]:
    """The URIs of the runs or the search of a job, which look for a request to stop."""
    if job.metadata.get("antiphon") in ID_OPTIONS:
        return [job.metadata["uri"]]
    runs: list[str] = json.loads(job.metadata.get("teacher_runs", "[]"))
    return runs


def _has_ended(jobs: Jobs, job_id: str, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while (job := jobs.state(job_id)) is not None and not job.ended:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _ask_to_stop(
    jobs: Jobs, job: JobState, uris: list[str], say: Callable[[str], Any], *, within_s: float
) -> int | None:
    """Run `antiphon stop NAME --storage URI` on the cluster for each, in the job's own environment.

    Returns 0 where one of them was asked, else the last one's exit code; None where that is not known in time.
    """
    commands = []
    for uri in uris:
        storage, _, name = uri.rpartition("/")
        commands.append(shlex.join([job.metadata["python"], *MODULE, "stop", name, "--storage", storage]))
    helper = f"{job.id}-stop-{time.time_ns()}"
    jobs.submit(helper, " || ".join(commands), runtime_env=job.runtime_env, metadata={"antiphon": STOP})
    if not _has_ended(jobs, helper, within_s=within_s):
        say(f"job {helper}, which is to ask job {job.id} to stop, has not ended within {within_s:.0f} s")
        return None
    code = exit_code(jobs.state(helper))
    if code:
        said = jobs.log(helper).strip().splitlines()
        say(f"job {job.id} could not be asked to stop: {said[-1] if said else 'no reason is given'}")
    else:
        say(f"job {job.id} is asked to save and stop")
    return code
