"""Where a run goes on: its newest checkpoint that is whole. Knows nothing of what a checkpoint's state means."""

from pathlib import Path
from typing import Any

from workloads.runtime import checkpoint
from workloads.runtime.session import Session, gather


def newest_whole(session: Session) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest checkpoint that every worker could fetch and verify, its state, and why newer ones were passed over.

    No checkpoint: (None, {}, []), a fresh start. Raises ValueError where there are some and none is whole: starting
    afresh must be the user's decision.
    """
    names = gather(session, session.checkpoints() if session.rank == 0 else [])[0]
    damaged: list[str] = []
    for name in names:
        folder = session.fetch(name)
        state, trouble = _read(folder)
        troubles = [words for words in gather(session, trouble) if words]
        if not troubles:
            return folder, state, damaged
        damaged.append(troubles[0])
    if damaged:
        raise ValueError(
            f"none of this run's {len(damaged)} checkpoints is whole, so it cannot be resumed; start it anew under "
            f"another --run-id ({'; '.join(damaged)})"
        )
    return None, {}, []


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint's state, or what is wrong with it."""
    try:
        return checkpoint.read_state(folder), ""
    except ValueError as error:
        return {}, str(error)
