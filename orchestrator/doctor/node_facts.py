"""What one machine is like: runs on every node of a cluster, or here. Measures and judges nothing.

Contract: leaves nothing behind but, where it is killed between a write and its removal, one small file in the storage.
"""

import os
import platform
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from orchestrator.storage import object_store
from orchestrator.storage.retry import describe_error
from orchestrator.tracking.uri import split_credentials

PACKAGES = ("antiphon", "ray", "torch", "torchaudio")
TRACKING_S = 10.0  # how long MLflow's server may take


@dataclass(frozen=True)
class Subject:
    """What is looked at on each node; empty: left out."""

    storage: str = ""
    seen: str = ""  # a file that the driver has written there, and all nodes must see
    tracking: str = field(default="", repr=False)  # MLflow's URI, which may hold a password
    data_root: str = ""
    cache: str = ""  # a local folder
    gpus: bool = False  # whether torch must find any


@dataclass(frozen=True)
class NodeFacts:
    """What a node's process has found; errors in one line, empty where there is none."""

    versions: dict[str, str]
    storage_ms: dict[str, float]  # of one small object: write, read, conditional write, remove
    storage_error: str
    has_credentials: bool | None  # for S3; None: not looked for
    data_error: str
    tracking_error: str
    gpus: list[str] | None  # names by torch; None: not looked for
    shared_memory: int | None  # bytes free in /dev/shm; None: there is none, as on macOS, where Ray takes /tmp
    cache_free: int | None  # bytes free on the disk of the clips' cache; None: not looked for


def look(subject: Subject) -> NodeFacts:
    """Look at this machine."""
    timings, storage_error = _try_storage(subject) if subject.storage else ({}, "")
    return NodeFacts(
        versions=_versions(),
        storage_ms=timings,
        storage_error=storage_error,
        has_credentials=_has_credentials() if subject.storage.startswith("s3://") else None,
        data_error=_error_of(lambda: _require_there(subject.data_root)) if subject.data_root else "",
        tracking_error=_error_of(lambda: _ask_tracking(subject.tracking)) if subject.tracking else "",
        gpus=_gpus() if subject.gpus else None,
        shared_memory=psutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        cache_free=_free_below(subject.cache) if subject.cache else None,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # also where a job's own folder holds antiphon
            found[package] = "none"
    return found


def _try_storage(subject: Subject) -> tuple[dict[str, float], str]:
    """Milliseconds of each operation on one small object; those up to the first error, and that."""
    probe = object_store.join(subject.storage, f".doctor-{uuid4().hex}")
    steps: dict[str, Callable[[], Any]] = {
        "look": lambda: _require(
            not subject.seen or object_store.exists(subject.seen), "what another machine has written there is not seen"
        ),
        "write": lambda: object_store.put_text(probe, "here"),
        "read": lambda: _require(object_store.get_bytes(probe) == b"here", "what was written was not read"),
        "conditional write": lambda: _require(
            not object_store.create_exclusively(probe, b"again"), "the store ignores exclusive creates"
        ),
        "remove": lambda: object_store.remove_file(probe),
    }
    timings: dict[str, float] = {}
    for name, step in steps.items():
        began = time.monotonic()
        if error := _error_of(step):
            _error_of(lambda: object_store.remove_file(probe))
            return timings, f"{name}: {error}"
        timings[name] = 1000 * (time.monotonic() - began)
    return timings, ""


def _require(rule: bool, otherwise: str) -> None:
    if not rule:
        raise OSError(otherwise)


def _error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:  # each kind of store or server raises other exception types
        return describe_error(error)
    return ""


def _has_credentials() -> bool:
    from botocore.session import Session

    return Session().get_credentials() is not None


def _require_there(uri: str) -> None:
    _require(object_store.exists(uri), "it is not there")


def _ask_tracking(uri: str) -> None:
    """Any answer of a server is one, also that it wants a password; a database is not opened."""
    server, _ = split_credentials(uri)
    if not server.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=TRACKING_S).close()
    except urllib.error.HTTPError as answer:
        _require(answer.code in (401, 403, 404), f"answers with status {answer.code}")


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _free_below(folder: str) -> int:
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return int(psutil.disk_usage(str(path)).free)
