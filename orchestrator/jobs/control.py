"""Submitting, following and stopping a job by its name: `antiphon submit`, `logs` and `stop`.

A job is called as the run or search that it works on. Ray takes an id once, also after the job has ended, so the second
job of a name is NAME-2: each goes on with what the one before has left.
"""

import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.jobs.client import Jobs, JobState
from orchestrator.jobs.submission import (
    ID_OPTIONS,
    Submission,
    entrypoint,
    local_python,
    metadata,
    pack_folder,
    runtime_env,
)

POLL_S = 1.0
KILLED_S = 30.0  # Ray kills a job that does not end by itself after three
STOP = "stop"  # the command of a job that asks another one to stop; `antiphon jobs` leaves it out
STOPPED_CODE = 75  # what `antiphon run` and its like exit with after they have saved


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
        others = [job for job in jobs.all() if job.metadata.get("name") == submission.name]
        running = next((job for job in others if not job.ended), None)
        if running is not None:
            say(f"job {running.id} is {running.status.lower()} already")
            return running.id
        job_id = f"{submission.name}-{len(others) + 1}" if others else submission.name
        with tempfile.TemporaryDirectory() as folder:
            size = pack_folder(submission, Path(folder))
            try:
                jobs.submit(
                    job_id,
                    entrypoint(submission),
                    runtime_env=runtime_env(submission, Path(folder)),
                    metadata=metadata(submission),
                )
            except ValueError:  # another command was faster: it is found above, unless it has ended already
                continue
        say(f"job {job_id} is submitted to {jobs.address}, with {size / 1e6:.2f} MB of files")
        return job_id


def follow(jobs: Jobs, job_id: str, write: Callable[[str], Any]) -> int:
    """Write what a job prints from its beginning until it ends, and return its exit code."""
    written = 0  # characters
    while True:
        read = 0
        for text in jobs.follow(job_id):
            read += len(text)
            if read > written:
                write(text[written - read :])
                written = read
        job = jobs.state(job_id)
        if job is None or job.ended:
            break
        time.sleep(POLL_S)  # the dashboard has closed the connection: from the beginning again
    write(jobs.log(job_id)[written:])  # lines that came after the connection was closed
    return exit_code(job)


def exit_code(job: JobState | None) -> int:
    """The exit code of a job that has ended: its driver's, 75 where it was stopped, 1 where the cluster lost it."""
    if job is None:
        return 1
    if job.exit_code is not None:
        return job.exit_code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED_CODE}.get(job.status, 1)


def stop(jobs: Jobs, name: str, *, patience_s: float, say: Callable[[str], Any]) -> int:
    """Have a job save and end; after `patience_s` seconds it is terminated. Returns its exit code.

    What it works on is asked to stop by a file in its storage, which a second job writes, since this machine may have
    no credentials. Ray itself gives a job three seconds between SIGTERM and SIGKILL.
    """
    job = jobs_named(jobs, name)[0]
    if job.ended:
        say(f"job {job.id} has ended: {job.status.lower()}")
        return exit_code(job)
    if job.status == "RUNNING" and job.metadata.get("antiphon") in ID_OPTIONS:
        _ask_to_stop(jobs, job, say)
        if not _has_ended(jobs, job.id, within_s=patience_s):
            say(f"job {job.id} has not ended within {patience_s:.0f} s")
    if not _has_ended(jobs, job.id, within_s=0):
        say(f"job {job.id} is terminated: what it has committed stays")
        jobs.stop(job.id)
        _has_ended(jobs, job.id, within_s=KILLED_S)
    return exit_code(jobs.state(job.id))


def _has_ended(jobs: Jobs, job_id: str, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while (job := jobs.state(job_id)) is not None and not job.ended:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _ask_to_stop(jobs: Jobs, job: JobState, say: Callable[[str], Any]) -> None:
    """Run `antiphon stop NAME --storage URI` on the cluster, in the job's own environment."""
    storage, _, name = job.metadata["uri"].rpartition("/")
    words = [job.metadata["python"], "-m", "orchestrator.cli.app", "stop", name, "--storage", storage]
    helper = f"{job.id}-stop-{time.time_ns()}"
    jobs.submit(helper, shlex.join(words), runtime_env=job.runtime_env, metadata={"antiphon": STOP})
    say(f"job {job.id} is asked to save and stop")
    code = follow(jobs, helper, lambda text: None)
    if code:
        say(f"it could not be asked ({jobs.log(helper).strip().splitlines()[-1:]}); it is terminated")
