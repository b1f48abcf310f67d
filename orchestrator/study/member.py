"""One run of a study in the process that trains it, and the driver's count of all of them. Imports no Ray."""

import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field

from orchestrator.runs.location import RunLocation
from orchestrator.storage.retry import print_status
from orchestrator.study.plan import Member, StudyPlan, run_id
from orchestrator.study.request import StudyRequest
from orchestrator.training import driver
from orchestrator.training.driver import Progress
from workloads.runtime.checkpoint_store import AlreadyDriven
from workloads.runtime.text import one_line


@dataclass
class Tally:
    """What has become of a study's runs while a driver works on them, and the time they take."""

    total: int
    done: int
    failed: dict[str, str] = field(default_factory=dict)  # run id -> why it ended
    slots: int = 1
    _began: float = field(default_factory=time.monotonic)
    _at_first: int = 0

    def __post_init__(self) -> None:
        self._at_first = self.done

    def count(self, run: str, status: str, error: str) -> None:
        """Count a run that has ended, and print how far the study is."""
        if status == "done":
            self.done += 1
        else:
            self.failed[run] = error or f"{status}; the same command goes on"
        ended = self.done + len(self.failed)
        each = (time.monotonic() - self._began) / max(ended - self._at_first, 1)
        left = f"; about {each * (self.total - ended) / 60:.0f} min left" if ended < self.total else ""
        reason = f": {error}" if error else ""
        print_status(f"study: {ended} of {self.total} runs have ended; {run} is {status}{reason}{left}")


def run_member(request: StudyRequest, plan: StudyPlan, member: Member, show_progress: Progress) -> dict[str, str]:
    """Train one run in this process, in its main thread; returns its status and error.

    What it raises is its own failure, here as in a process of Ray's, and the others go on: a mistake of the user's,
    another process that drives it (AlreadyDriven), a disk or store that fails. Of anything else the traceback is
    printed.
    """
    name = run_id(request.id, member)
    try:
        run = request.run_request(plan.recipe(member), name)
        outcome = driver.run(run, show_progress=show_progress, warn=_ignore).outcome
    except Exception as error:
        if not isinstance(error, ValueError | AlreadyDriven | OSError):
            traceback.print_exc()
        return {"status": "failed", "error": one_line(error)}
    return {"status": outcome["status"], "error": outcome["error"]}


def no_progress(location: RunLocation) -> nullcontext[None]:
    """Shows nothing of a run; of several at once nobody could read it."""
    return nullcontext()


def _ignore(warning: str) -> None:
    """Warnings about the data: the study has printed them."""
