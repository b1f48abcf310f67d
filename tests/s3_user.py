"""A user of a real S3 server, who runs `antiphon` there; tests read the bucket with boto3. A pytest plugin."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import killed, small
from tests.proxy import Proxy
from workloads.runtime import checkpoint
from workloads.runtime.event_log import read_event_log

PLAN = ["schedule.burn_in=12", "schedule.period=12", "schedule.turns=2", "train.checkpoint_every=4"]
CHECKPOINTS = "runs/r/checkpoints/"


def command(cache: Path, *, tracking: str = "none") -> list[str]:
    """Arguments of a run of 36 steps; an empty `tracking` leaves the option out: the default, SQLite."""
    values = [*small.SIZES, *small.TWO_MODELS, *PLAN, f"data.cache={cache}"]
    where = ["--tracking", tracking] if tracking else []
    return ["run", "demo", "--json", *where, *(word for value in values for word in ("--set", value))]


@dataclass
class S3User:
    """A user with an empty home folder and a bucket; the run is called `r`."""

    server: Any
    bucket: str
    home: Path
    cache: Path

    def antiphon(self, *more: str, env: dict[str, str] | None = None) -> int:
        """Run the command line with additional arguments; returns the exit code."""
        process = self.start(*more, env=env)
        process.join()
        return process.exitcode

    def start(self, *more: str, env: dict[str, str] | None = None) -> Any:
        """The same, without waiting for the process to end."""
        arguments = self._arguments("--local", *more)
        return killed.start(arguments, self.home / "out", env={**self.env, **(env or {})})

    def start_on_ray(self, *more: str, env: dict[str, str] | None = None, tracking: str = "none") -> Any:
        """The same on Ray, with the program as jobs of a cluster have it."""
        with (self.home / "out").open("wb") as out, (self.home / "out.err").open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli.app", *self._arguments(*more, tracking=tracking)],
                env={**os.environ, **self.env, **(env or {})},
                stdout=out,
                stderr=errors,
            )

    def _arguments(self, *more: str, tracking: str = "none") -> list[str]:
        which = [] if "--resume" in more else ["--run-id", "r"]
        where = [] if "--storage" in more else ["--storage", f"s3://{self.bucket}/runs"]
        return [*command(self.cache, tracking=tracking), *which, *where, *more]

    @property
    def env(self) -> dict[str, str]:
        return {**self.server.env, "HOME": str(self.home)}

    @property
    def outcome(self) -> dict[str, Any]:
        return killed.outcome(self.home / "out")

    @property
    def stderr(self) -> str:
        return (self.home / "out.err").read_text()

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]

    @property
    def event_log(self) -> Path:
        return self.home / ".cache/antiphon/runs/s3" / self.bucket / "runs/r/events.jsonl"

    def num_checkpoints(self) -> int:
        """The number of checkpoints that the run has recorded; uploads may not have finished."""
        records = read_event_log(self.event_log) if self.event_log.exists() else []
        return len([record for record in records if record["kind"] == "checkpoint"])

    def objects(self) -> list[str]:
        """The keys of all objects in the bucket."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def checkpoints(self) -> dict[str, list[str]]:
        """The files of each checkpoint, committed or not, by its name."""
        found: dict[str, list[str]] = {}
        for key in self.objects():
            if key.startswith(CHECKPOINTS):
                name, file = key.removeprefix(CHECKPOINTS).split("/")
                found.setdefault(name, []).append(file)
        return found

    def check_intact(self, name: str) -> None:
        """Download a checkpoint and verify its digests."""
        folder = self.home / "fetched" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.checkpoints()[name]:
            self.server.client().download_file(self.bucket, f"{CHECKPOINTS}{name}/{file}", str(folder / file))
        assert checkpoint.read_state(folder)["step"] == int(name.split("-")[1])

    def check_same_result(self, undisturbed: dict[str, Any]) -> None:
        """The same bits as an undisturbed run, every step recorded, only intact checkpoints in the bucket."""
        assert self.outcome["status"] == "done"
        for name, row in undisturbed["models"].items():
            assert self.outcome["models"][name] | {"checkpoint": ""} == row | {"checkpoint": ""}
        total = undisturbed["steps_run"]
        assert self.outcome["resumed_from_step"] + self.outcome["steps_run"] == total
        body = self.server.client().get_object(Bucket=self.bucket, Key="runs/r/events.jsonl")["Body"].read()
        records = [json.loads(line) for line in body.splitlines()]
        assert {record["step"] for record in records if record["kind"] == "metrics"} == set(range(1, total + 1))
        assert self.checkpoints()
        for name in self.checkpoints():
            self.check_intact(name)

    def steps_repeated(self) -> int:
        """Last step recorded before the newest start, less the step from which that start resumed."""
        records = read_event_log(self.event_log)
        start = max(number for number, record in enumerate(records) if record["kind"] == "start")
        before = [record["step"] for record in records[:start] if record["kind"] == "metrics"]
        return max(before) - records[start]["step"]

    def seconds_to_next_step(self, since: float) -> float:
        """Seconds from an instant (of time.time) to the next training step, by the time in its record."""
        after = [record["t"] / 1000 - since for record in read_event_log(self.event_log) if record["kind"] == "metrics"]
        return min(seconds for seconds in after if seconds > 0)


@pytest.fixture(scope="session")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def undisturbed(user_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of the same run without faults, in a local folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    where = ["--local", "--storage", str(folder / "runs"), "--run-id", "r"]
    assert killed.antiphon([*command(user_cache), *where], folder / "out") == 0
    return killed.outcome(folder / "out")


@pytest.fixture
def user(rgw_server: Any, user_cache: Path, tmp_path: Path) -> S3User:
    bucket = tmp_path.name.replace("_", "-").lower()[-60:].strip("-")
    rgw_server.client().create_bucket(Bucket=bucket)
    return S3User(rgw_server, bucket, tmp_path, user_cache)


@pytest.fixture
def proxy(rgw_server: Any) -> Iterator[Proxy]:
    """A proxy in front of the S3 server that injects faults; `through` is the environment of a run that uses it."""
    with Proxy(rgw_server.endpoint) as running:
        yield running


def through(proxy: Proxy) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": proxy.endpoint}


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    """Return once the condition holds; fail if the process ends before, or after five minutes."""
    watched, deadline = psutil.Process(process.pid), time.monotonic() + 300
    while not condition():
        assert watched.is_running(), "the run has ended"
        assert watched.status() != psutil.STATUS_ZOMBIE, "the run has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leaks(secret: str, *folders: Path) -> list[Path]:
    """The files that contain a secret."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if secret.encode() in path.read_bytes()]


def publish_200_mb(env: dict[str, str], run_uri: str, home: Path, step: int) -> None:
    """Take the run over, commit a checkpoint of 200 MB, fetch it and verify it. Called in a separate process.

    Writes the rates of upload and download, in MB per second, to `home`/out.
    """
    os.environ.update(env)
    import torch

    from orchestrator.runs.checkpoint_store import CheckpointStore, NewestAndBest
    from orchestrator.runs.lease import Driver, take_over

    attempt = take_over(run_uri, Driver())
    store = CheckpointStore(attempt, retention=NewestAndBest(9), patience_s=60)
    store.collect_garbage()
    name = f"step-{step:08d}-attempt-{attempt.number}"
    weights = {"w": torch.rand(50_000_000, generator=torch.Generator().manual_seed(step))}
    folder = checkpoint.write(home / name, tensors={"vit": weights}, state={"step": step, "best_for": {}})
    started = time.perf_counter()
    store.publish(folder)
    uploaded = time.perf_counter()
    fetched = store.fetch(name, home)
    downloaded = time.perf_counter()
    checkpoint.read_state(fetched)
    assert torch.equal(checkpoint.read_tensors(fetched, "vit")["w"], weights["w"])
    shutil.rmtree(fetched)
    (home / "out").write_text(json.dumps({"up": 200 / (uploaded - started), "down": 200 / (downloaded - uploaded)}))
