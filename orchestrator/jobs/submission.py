"""What is sent to a cluster for a job: the command, the recipe and, unless its nodes have it, the code. Knows no Ray.

No secret is sent: a job finds credentials in the environment of the cluster's nodes, and only their names are given.
"""

import hashlib
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import stack
from cluster.spec import ID_OPTIONS
from cluster.work_command import PROGRAM
from orchestrator.storage import object_store
from workloads.runtime.json_files import json_text
from workloads.runtime.redaction import redacted

PACKAGES = ("orchestrator", "workloads", "cluster")
MAX_BYTES = 100_000_000  # Ray refuses larger working folders
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PYTHON, *MODULE = PROGRAM  # how a node runs antiphon, and as which program
SHIPPED_RECIPE = "recipe.json"  # in the job's working folder


@dataclass(frozen=True)
class Submission:
    """One `antiphon submit`, as the user typed it."""

    kind: str  # the command that the job runs: run, search, teach or study
    recipe: Mapping[str, Any]  # resolved; of a study its plan, with all recipes
    arguments: Sequence[str]  # of the command, after its recipe
    name: str  # of the job; also the id of its run or search
    storage: str  # the URI below which that is, or the store of `teach`
    teacher_runs: Sequence[str] = ()  # URIs of the runs that `teach` trains before it fills the store
    env: Sequence[str] = ()  # NAME: must be set on the nodes; NAME=VALUE: set for the job
    python: str = ""  # of the nodes; empty: `python`, or this one for the cluster of `antiphon cluster up`
    installed: bool = False  # whether the nodes have antiphon; else its code is sent

    @property
    def uri(self) -> str:
        """Where the job's run, search or store is."""
        return self.storage if self.kind == "teach" else object_store.join(self.storage, self.name)


def check_environment(env: Sequence[str]) -> None:
    """Raise ValueError for names that are none, and for values that must not be sent."""
    for given in env:
        name = given.partition("=")[0]
        if not NAME.fullmatch(name):
            raise ValueError(f"--env {name!r}: must be NAME or NAME=VALUE, and NAME letters, digits and _")
        if redacted(given) != given:
            raise ValueError(
                f"--env {name}: a secret must not travel with a job, where all can read it; set it in the "
                f"environment of the cluster's nodes, and give --env {name}"
            )


def entrypoint(submission: Submission) -> str:
    """The job's shell command: it ends with an error where a variable is not set, and else becomes the command.

    It names what it works on, so that repeated it goes on with that: see `--resume auto`, which a study does not need.
    """
    needed = [
        f': "${{{given}:?must be set on the nodes of the cluster}}"; ' for given in submission.env if "=" not in given
    ]
    words = [submission.python or PYTHON, *MODULE, submission.kind, SHIPPED_RECIPE]
    if option := ID_OPTIONS.get(submission.kind):
        words += [option, submission.name, *([] if submission.kind == "study" else ["--resume", "auto"])]
    return f"{''.join(needed)}exec {shlex.join([*words, *submission.arguments])}"


def runtime_env(submission: Submission, folder: Path) -> dict[str, Any]:
    """Ray's description of where the job's processes run; `folder` becomes their working folder."""
    variables = dict(given.split("=", 1) for given in submission.env if "=" in given)
    return {"working_dir": str(folder), "env_vars": {**stack.QUIET, **stack.CHECKSUMS, **variables}}


def metadata(submission: Submission) -> dict[str, str]:
    """What `antiphon jobs` shows of a job, and `antiphon stop` needs."""
    python = submission.python or PYTHON
    recipe = hashlib.sha256(json_text(submission.recipe).encode()).hexdigest()[:16]
    what = {"antiphon": submission.kind, "name": submission.name, "uri": submission.uri, "recipe": recipe}
    runs = {"teacher_runs": json_text(list(submission.teacher_runs))} if submission.teacher_runs else {}
    return what | runs | {"python": python}


def pack_folder(submission: Submission, folder: Path) -> int:
    """Fill a folder with what the job needs, and return the number of bytes; ValueError where that is too much."""
    (folder / SHIPPED_RECIPE).write_text(json_text(submission.recipe, indent=1))
    if not submission.installed:
        root = Path(__file__).parents[2]
        for package in PACKAGES:
            shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"the job's files take {size / 1e6:.0f} MB, and Ray takes {MAX_BYTES / 1e6:.0f} MB at most")
    return size


def local_python(address: str) -> str:
    """The Python of the nodes at a dashboard's address, where it is known: this one, for a cluster on this machine."""
    mine = any(service.name == "ray" and stack.dashboard(service) == address for service, _ in stack.status())
    return sys.executable if mine else ""
