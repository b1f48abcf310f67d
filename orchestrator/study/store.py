"""The files of a study on its storage, beside those of its runs: their names, writing and reading.

    STUDY_ID/study.json     written once, before the first run: id, time, command, and the plan with all recipes
    STUDY_ID/outcome.json   the results so far, replaced whole whenever a command of the study ends
    STUDY_ID/attempts/      claims and heartbeats of its drivers (`runs/lease.py`); runs have their own
    STUDY_ID-METHOD-foldF-seedS/    a run

The driver of the study alone writes here. A kill leaves study.json, from which the same command continues.
"""

from dataclasses import dataclass
from typing import Any

from orchestrator.storage import object_store
from orchestrator.study.plan import StoredPlan, StudyPlan, changed, plan_of, without
from workloads.runtime.json_files import json_text

DEFINITION, OUTCOME = "study.json", "outcome.json"


class Definition(StoredPlan):
    """study.json."""

    study_id: str
    created: float
    command: str


@dataclass(frozen=True)
class StudyStore:
    """The files of the study at `uri`, a folder or URI: STORAGE/STUDY_ID."""

    uri: str

    @property
    def study_id(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def storage(self) -> str:
        return self.uri.rstrip("/").rpartition("/")[0] or "."

    def open(self, plan: StudyPlan, *, command: str, created: float) -> StudyPlan:
        """Create the study, or continue it; returns its plan, which is the one that it was started with: a method that
        was left out then stays so, also where its store has appeared since.

        ValueError where it was started with another: what is compared is fixed before the first run.
        """
        definition: Definition = {
            "study_id": self.study_id,
            "created": created,
            "command": command,
            **plan.as_json(),
        }
        text = json_text(definition, indent=1)
        if object_store.create_exclusively(object_store.join(self.uri, DEFINITION), text.encode()):
            return plan
        stored = self.read_plan()
        plan = without(plan, stored.left_out)
        if difference := next(changed(plan, stored), ""):
            raise ValueError(
                f"study {self.study_id!r}: was started with other {difference}; a study keeps its plan: repeat the "
                "command that started it, or start another with --study-id"
            )
        return plan  # where its data lies may have changed

    def read_plan(self) -> StudyPlan:
        """The plan that the study was started with; ValueError where there is none."""
        uri = object_store.join(self.uri, DEFINITION)
        if not object_store.exists(uri):
            raise ValueError(f"study {self.uri!r}: no {DEFINITION} there; give STORAGE/STUDY_ID")
        return plan_of(object_store.read_json(uri, Definition))

    def write_outcome(self, outcome: dict[str, Any]) -> None:
        object_store.put_text(object_store.join(self.uri, OUTCOME), json_text(outcome, indent=1))

    def read_outcome(self) -> dict[str, Any]:
        """The outcome that the last command left; empty where none has ended."""
        uri = object_store.join(self.uri, OUTCOME)
        outcome: dict[str, Any] = object_store.read_json(uri) if object_store.exists(uri) else {}
        return outcome
