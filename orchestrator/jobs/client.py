"""The jobs of a Ray cluster, through its dashboard: the one owner of Ray Jobs.

Does not depend on what a job runs. A job is a driver process on a node of the cluster, started and watched by an actor
there: who submits it may go away. A killed cluster takes its jobs with it.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster import stack
from orchestrator.storage.retry import Unavailable, describe_error
from workloads.runtime.text import one_line

NOT_FOUND = "status code 404"  # how Ray's client tells of a job that there is not
DASHBOARD = "RAY_API_SERVER_ADDRESS"  # Ray's own name for the variable
# A job's driver, and with it Ray Train's controller, goes with its node: not to one that may be taken away.
NOT_SPOT = {"ray.io/market-type": "!spot"}


@dataclass(frozen=True)
class JobState:
    """What the cluster knows of a job; times are in milliseconds since the epoch, 0 where they are not known."""

    id: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    message: str
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    exit_code: int | None
    started_ms: int
    ended_ms: int

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class IdTaken(Exception):
    """The cluster has, or had, a job with this id."""


class RefusedByRay(OSError):
    """The cluster's dashboard answers that it cannot do what it is asked, in one line."""


class Jobs:
    """The jobs of the cluster whose dashboard is at an address; Unavailable is raised where it does not answer."""

    def __init__(self, address: str) -> None:
        self.address = dashboard_address(address)
        logging.getLogger("ray").setLevel(logging.WARNING)  # Ray tells of each upload and connection
        from ray.job_submission import JobSubmissionClient  # Ray takes a second to import

        with self._answers():
            self._client = JobSubmissionClient(self.address)

    def submit(self, job_id: str, entrypoint: str, *, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Start a job; IdTaken where there is one with this id, also one that has ended.

        Of two that submit the same id at once, one gets the error.
        """
        try:
            with self._answers():
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata=metadata,
                    entrypoint_label_selector=NOT_SPOT,
                )
        except RefusedByRay as refused:
            if self.state(job_id) is None:
                raise
            raise IdTaken(job_id) from refused

    def state(self, job_id: str) -> JobState | None:
        """The job with an id; None where the cluster knows none."""
        try:
            with self._answers():
                return _state(self._client.get_job_info(job_id))
        except RefusedByRay as refused:
            if NOT_FOUND in str(refused):
                return None
            raise

    def all(self) -> list[JobState]:
        """All submitted jobs that the cluster remembers, the newest first."""
        with self._answers():
            found = self._client.list_jobs()
        jobs = [_state(job) for job in found if job.submission_id]
        return sorted(jobs, key=lambda job: job.started_ms, reverse=True)

    def log(self, job_id: str) -> str:
        """All that the job has printed so far."""
        with self._answers():
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job prints, from its beginning until it ends or the dashboard closes the connection."""
        loop = asyncio.new_event_loop()
        texts: Any = self._client.tail_job_logs(job_id)
        try:
            while True:
                with self._answers():
                    yield loop.run_until_complete(anext(texts))
        except StopAsyncIteration:
            return
        finally:
            loop.run_until_complete(texts.aclose())
            loop.close()

    def stop(self, job_id: str) -> None:
        """SIGTERM for the job's process, and SIGKILL three seconds later."""
        with self._answers():
            self._client.stop_job(job_id)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Raise Unavailable where the dashboard does not answer, ValueError for a token, RefusedByRay for all else."""
        import aiohttp  # it and requests come with Ray's job client
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as refused:
            reason = str(refused).strip().splitlines()[0]
            raise ValueError(
                f"--address {self.address!r}: {reason}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file "
                "with the cluster's token"
            ) from None
        except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
            raise Unavailable(
                f"--address {self.address!r}: no Ray dashboard answers there ({describe_error(error)}); give "
                f"http://HEAD:8265, or set {DASHBOARD}"
            ) from None
        except RuntimeError as refused:
            raise RefusedByRay(f"--address {self.address!r}: {one_line(refused)[:300]}") from None


def dashboard_address(address: str) -> str:
    """The dashboard's URL: the one given, else $RAY_API_SERVER_ADDRESS, else that of `antiphon cluster up`.

    Sets what Ray's client needs for the token of the latter. ValueError where there is none of them, or it is no URL.
    """
    address = address or os.environ.get(DASHBOARD, "")
    for service, state in stack.status():
        if service.name == "ray" and state == "up" and address in ("", stack.dashboard(service)):
            os.environ.update(service.client_env)
            return stack.dashboard(service)
    if not address.startswith(("http://", "https://")):
        what = f"--address {address!r}: must be" if address else "no cluster is named; give --address with"
        raise ValueError(
            f"{what} the URL of a Ray dashboard, such as http://HEAD:8265, or set {DASHBOARD}, or start a cluster on "
            "this machine with `antiphon cluster up`"
        )
    return address.rstrip("/")


def _state(job: Any) -> JobState:
    return JobState(
        id=job.submission_id,
        status=str(getattr(job.status, "value", job.status)),
        message=job.message or "",
        metadata=dict(job.metadata or {}),
        runtime_env=dict(job.runtime_env or {}),
        exit_code=job.driver_exit_code,
        started_ms=job.start_time or 0,
        ended_ms=job.end_time or 0,
    )
