"""From which checkpoint a run resumes: the newest intact one. Does not depend on what a checkpoint's state means."""

from pathlib import Path
from typing import Any

from workloads.runtime import checkpoint
from workloads.runtime.json_files import TrainingState
from workloads.runtime.session import Session, gather


def newest_intact_checkpoint(session: Session) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that every worker could fetch and verify, its state, and why newer ones were skipped.

    Called by every worker once, before the first step; all return the same checkpoint. Without checkpoints: (None, {},
    []), a run from the beginning. Raises ValueError where there are some and none is intact: starting again is the
    user's decision.
    """
    names = gather(session, session.checkpoints() if session.rank == 0 else [])[0]
    damaged: list[str] = []
    for name in names:
        folder = session.fetch(name)
        state, error = _read_state(folder, name)
        errors = [message for message in gather(session, error) if message]
        if not errors:
            return folder, state, damaged
        damaged.append(errors[0])
    if damaged:
        raise ValueError(
            f"none of this run's {len(damaged)} checkpoints is intact, so it cannot be resumed; start a new run under "
            f"another --run-id ({'; '.join(damaged)})"
        )
    return None, {}, []


def _read_state(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """A checkpoint's state and an empty string, or no state and the reason why it cannot be used."""
    try:
        return checkpoint.read_state(folder, name, shape=TrainingState), ""
    except ValueError as error:
        return {}, str(error)
