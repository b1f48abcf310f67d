"""Asking a run or a search to save and stop by a file in its storage, from any process that can write there."""

from orchestrator.runs.lease import Driver, request_stop_of_newest
from orchestrator.storage import object_store


def stop_in_storage(storage: str, name: str) -> list[Driver]:
    """Ask the driver of a run or search to save and stop, or that of the seed which a comparison is at.

    Returns the processes that are asked. ValueError where none of them works on it.
    """
    seeds = [other for other in object_store.list_names(storage) if other.startswith(f"{name}-seed-")]
    asked, reasons = [], []
    for member in [name, *seeds]:
        try:
            asked.append(request_stop_of_newest(object_store.join(storage, member)))
        except ValueError as reason:
            reasons.append(reason)
    if not asked:
        raise reasons[0]
    return asked
