"""Drivers of runs, as attempts name them: one whose process has ended, and one on another host."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

from orchestrator.runs.lease import Driver


@functools.cache
def ended_process() -> Driver:
    """The driver of a process of this machine that has ended without a note; always the same one."""
    script = "import json; from dataclasses import asdict; from orchestrator.runs.lease import Driver; "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(json.dumps(asdict(Driver())))"], capture_output=True, check=True
    )
    return Driver(**json.loads(done.stdout))


def driver_on_another_host(**fields: Any) -> Driver:
    return replace(Driver(), host="another-host", **fields)
