"""A run that its driver has claimed and begun to record: what both ways to train it are given."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from orchestrator.runs.lease import Attempt
from orchestrator.runs.location import RunLocation
from orchestrator.training.request import RunRequest
from orchestrator.training.signals import StopSignals
from workloads.runtime.event_log import EventLog


@dataclass(frozen=True)
class ClaimedRun:
    """One attempt at a run, in its driver's process, from its claim to its `end` record."""

    request: RunRequest
    location: RunLocation
    attempt: Attempt
    event_log: EventLog
    replayer: Any  # a Replayer, or NullTracking where nothing is tracked
    stop: StopSignals
    at_end: ExitStack  # closed once the outcome is written
