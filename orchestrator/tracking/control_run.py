"""The untaught controls of a run as a child run in MLflow, under the names of their students: their curves overlay.

Pure functions over records; `nested_runs.py` sends what they return.
"""

from collections.abc import Iterator
from typing import Any

CHILD = "untaught"
Record = dict[str, Any]


def controls_in(run_record: Record) -> dict[str, str]:
    """Control -> its student, from the parameters of a run's first record."""
    found = {}
    for key, value in run_record["params"].items():
        if key.startswith("models.") and key.endswith(".control_of") and value:
            found[key.removeprefix("models.").removesuffix(".control_of")] = value
    return found


def control_run_record(run_record: Record) -> Record:
    """The first record of the child run; no run of its own can have its id, which holds a slash."""
    own = {"run_id": f"{run_record['run_id']}/{CHILD}", "name": f"{run_record['name']}-{CHILD}"}
    return run_record | own | {"child": CHILD}


def split_controls(record: Record, controls: dict[str, str]) -> Iterator[Record]:
    """A record of the run itself, and what it says of the controls as a record of the child run."""
    kind = record["kind"]
    if not controls or "child" in record:
        yield record
    elif kind == "run":
        yield from (record, control_run_record(record))
    elif kind == "metrics":
        yield record | {
            "values": {key: value for key, value in record["values"].items() if _model(key) not in controls}
        }
        values = {_renamed(key, controls): value for key, value in record["values"].items() if _model(key) in controls}
        if values:
            yield record | {"values": values, "child": CHILD}
    elif kind == "result":
        rows = record["models"]
        yield record | {"models": {name: row for name, row in rows.items() if name not in controls}}
        own = {controls[name]: row for name, row in rows.items() if name in controls}
        yield record | {"kind": "control_result", "models": own, "child": CHILD}
    elif kind == "end":
        yield from (record | {"kind": "closed", "child": CHILD}, record)
    else:
        yield record


def _model(key: str) -> str:
    return key.split("/")[0]


def _renamed(key: str, controls: dict[str, str]) -> str:
    model, _, name = key.partition("/")
    return f"{controls[model]}/{name}"
