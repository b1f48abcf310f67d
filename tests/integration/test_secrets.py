"""The S3 credentials of a run are in the environment of its processes, and in no command line and no file."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.s3_user import leaks


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path for Ray's session: the path of a UNIX socket holds about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


def children(run: Any) -> set[int]:
    """The pids of a process and of all its descendants."""
    try:
        process = psutil.Process(run.pid)
        return {process.pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # the process has ended
        return b""


@pytest.mark.faults
def test_the_secret_is_found_nowhere(user, short_folder):
    secret = user.server.env["AWS_SECRET_ACCESS_KEY"]
    run = user.start_on_ray(tracking="", env={"RAY_TMPDIR": str(short_folder), "TMPDIR": str(short_folder)})
    seen: set[bytes] = set()
    try:
        while run.poll() is None:
            seen |= {command_line(pid) for pid in children(run)}
            time.sleep(0.2)
    finally:
        run.kill()
    assert run.returncode == 0, user.stderr

    assert any(b"RayTrainWorker" in line for line in seen)
    assert any(b"orchestrator.tracking" in line for line in seen)
    assert not [line for line in seen if secret.encode() in line]

    objects = user.home / "objects"
    for key in user.objects():
        (objects / key).parent.mkdir(parents=True, exist_ok=True)
        user.server.client().download_file(user.bucket, key, str(objects / key))
    for name in (
        "objects/runs/r/events.jsonl",
        ".cache/antiphon/runs/mlflow.db",
        f".cache/antiphon/runs/s3/{user.bucket}/runs/r/tracking.log",
    ):
        assert (user.home / name).is_file()
    assert list(short_folder.glob("**/session_*/logs/*worker*"))
    assert leaks(secret, user.home, short_folder) == []

    planted = [objects / "runs/r/planted", short_folder / "planted"]  # shows that the search finds a secret
    for path in planted:
        path.write_bytes(b"\0before" + secret.encode() + b"after\0")
    assert leaks(secret, user.home, short_folder) == planted
