"""Specs: the shipped one, what is refused with which words, and the command that a spec stands for."""

import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster.spec_file import SHIPPED, load_spec, parse_spec, shipped_specs
from cluster.work_command import PROGRAM, command_words, shell_command
from tests.cluster.specs import SERVE, make_spec, spec_values


def test_the_shipped_specs_load() -> None:
    assert shipped_specs() == ["example"]
    assert load_spec("example").kind == "cron"


def test_what_the_shipped_spec_says_about_plans_can_be_uncommented() -> None:
    text = SHIPPED.joinpath("example.toml").read_text()
    before, title, after = text.replace("# price", "price").partition("# For antiphon plan")
    assert title
    lines = [line.removeprefix("# ") for line in after.splitlines()[1:]]
    spec = parse_spec(tomllib.loads("\n".join([before, *lines])))
    assert spec.workers["gpu"].speed.tflops == 40
    assert spec.workers["gpu"].price_per_hour == 3.0
    assert spec.storage_speed.prefixes == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"work__recipie": "demo"}, "work.recipie: unknown key"),
        ({"workers__cpu__gpu": 1}, "workers.cpu.gpu: unknown key"),
        ({"head": None}, "head: is missing"),
        ({"head__cpus": "many"}, "head.cpus = 'many'"),
        ({"head__cpus": 0}, "head.cpus = 0.0: must be above 0"),
        ({"name": 3}, "name = 3"),
        ({"kind": "service"}, "serve = None: must be given for kind service"),
        ({"serve__models": {}}, "serve.models = {}: must name a tagger"),
        ({"serve__models": {"a b": "s3://x"}}, "serve.models.a b: must be letters"),
        ({"serve__models": {"cnn": "runs/x"}}, "serve.models.cnn = 'runs/x': must be s3://bucket/prefix"),
        ({"serve": {**SERVE, "min": 2}}, "serve.max = 1: must not be less than min (2)"),
        ({"serve": {**SERVE, "max_mb": 0}}, "serve.max_mb = 0.0: must be above 0"),
        (
            {"kind": "service", "serve": {**SERVE, "max": 9}},
            "serve.max = 9: the groups' max nodes hold 8 replicas of 1 CPUs; raise cpus or max of a group",
        ),
        ({"image": "antiphon"}, "image = 'antiphon': must name a tag"),
        ({"image": "antiphon:latest"}, "image = 'antiphon:latest': must be pinned"),
        ({"ray_version": "2.60"}, "ray_version = '2.60'"),
        ({"workers": {}}, "workers = {}: must have a group"),
        ({"workers__GPU": {"cpus": 1, "memory_gb": 1, "min": 1, "max": 1}}, "workers.GPU: must be"),
        ({"workers__cpu__min": 3}, "workers.cpu.max = 2: must be 1 or more, and not less than min (3)"),
        ({"workers__cpu__accelerator": "A100"}, "workers.cpu.accelerator = 'A100': needs gpus"),
        ({"workers__cpu__shared_memory_gb": 8}, "workers.cpu.shared_memory_gb = 8.0"),
        ({"workers__cpu__labels": {"ray.io/market-type": "spot"}}, "labels.ray.io/market-type: labels of ray.io/"),
        ({"workers__cpu__labels": {"team": "a b"}}, "labels.team = 'a b'"),
        ({"head__redis": {"address": "redis://:pw@redis:6379"}}, "must hold no password"),
        ({"head__redis": {"address": "redis"}}, "head.redis.address = 'redis': must be HOST:PORT"),
        ({"head__redis": {"address": "redis:1", "password": "pw"}}, "head.redis.password: must be SECRET/KEY"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "env.AWS_SECRET_ACCESS_KEY: looks like a secret"),
        ({"env": {"A B": "x"}}, "'A B': must be letters, digits and _"),
        ({"secrets": {"AWS_ACCESS_KEY_ID": "AKIA"}}, "secrets.AWS_ACCESS_KEY_ID: must be SECRET/KEY"),
        ({"env": {"X": "1"}, "secrets": {"X": "a/b"}}, "env.X: is among secrets too"),
        ({"work": None}, "work = None: must be given for kind job"),
        ({"work__id": ""}, "work.id = '': must be letters"),
        ({"work__storage": "runs"}, "work.storage = 'runs': must be s3://"),
        ({"work__recipe": "my.toml"}, "work.recipe = 'my.toml': must be a shipped recipe's name, or the absolute path"),
        ({"work__tracking": "sqlite:///x.db"}, "work.tracking = 'sqlite:///x.db': must be an MLflow server's URL"),
        ({"work__tracking": ""}, "work.tracking: must be an MLflow server's URL or none, or MLFLOW_TRACKING_URI"),
        ({"work__arguments": ["--run-id=x"]}, "arguments = '--run-id=x': follows from"),
        ({"work__arguments": ["$(date)"]}, "arguments = '$(date)': must hold no $"),
        ({"work__command": "teach"}, "work.id = 'nightly-1': must be left out"),
        ({"kind": "cron"}, "kind = 'cron': needs work.schedule"),
        ({"kind": "cron", "work__schedule": "*/5 * * * *"}, "work.schedule = '*/5 * * * *'"),
        ({"kind": "cron", "work__schedule": "0 2 * * *"}, "limits.deadline_s = 0: must be 1 to 86400 with kind cron"),
        ({"cache": {}, "work__arguments": ["--set", "data.cache=/x"]}, "work.arguments: set data.cache"),
        ({"cache": {"path": "clips"}}, "cache.path = 'clips': must be an absolute path"),
        ({"limits": {"retries": -1}}, "limits.retries = -1: must be 0 or more"),
        ({"head__price_per_hour": -1}, "head.price_per_hour = -1.0: must be 0 or more"),
        ({"workers__cpu__speed": {"network_gbps": 0}}, "workers.cpu.speed.network_gbps = 0.0: must be above 0"),
        ({"workers__cpu__speed": {"latency_us": -1}}, "workers.cpu.speed.latency_us = -1.0: must be 0 or more"),
        ({"storage_speed": {"requests_per_second": 0}}, "storage_speed.requests_per_second = 0.0: must be above 0"),
        ({"storage_speed": {"speed": 1}}, "storage_speed.speed: unknown key"),
        ({"slurm": {"options": ["--qos high"]}}, "options = '--qos high': must be one option"),
        ({"autoscaler": {"provider": {}, "head_node": {}, "nodes": {}}}, "autoscaler.provider = {}: must have a type"),
    ],
)
def test_mistakes_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        parse_spec(spec_values(**changes))
    assert message in str(refused.value)


def test_files_that_are_no_specs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("name = = 1")
    (tmp_path / "large.toml").write_text("#" * (2**20 + 1))
    for name, message in (("broken.toml", "not readable as TOML"), ("large.toml", "larger than"), ("x", "nor shipped")):
        with pytest.raises(ValueError, match=message):
            load_spec(str(tmp_path / name))


def test_the_command_names_what_it_goes_on_with() -> None:
    spec = make_spec(cache={"path": "/clips"})
    assert spec.work is not None
    assert command_words(spec.work, spec.cache) == [
        *("run", "demo", "--run-id", "nightly-1", "--resume", "auto", "--storage", "s3://bucket/runs"),
        *("--tracking", "none", "--set", "data.cache=/clips", "--workers", "2", "--set", "train.shards=2"),
    ]
    assert shlex.split(shell_command(spec.work, None)) == [*PROGRAM, *command_words(spec.work, None)]
    store = make_spec(work={"command": "teach", "recipe": "teach-demo", "storage": "s3://bucket/store"}).work
    assert store is not None
    assert command_words(store, None) == ["teach", "teach-demo", "--out", "s3://bucket/store"]


def test_a_night_s_id_holds_from_its_schedule_to_the_next_one(tmp_path: Path) -> None:
    """The shell's own date is asked what it makes of the id at four times: GNU date reads the time from a stub."""
    spec = make_spec(kind="cron", work__schedule="30 2 * * *", limits={"deadline_s": 3600})
    assert spec.work is not None
    command = shell_command(spec.work, None, daily=True)
    stub = tmp_path / "date"
    stub.write_text(
        '#!/bin/sh\n[ "$1 $2 $4" = "-u -d +%Y-%m-%d" ] || exit 1\nexec /bin/date -u -d "$NOW UTC $3" "$4"\n'
    )
    stub.chmod(0o755)
    ids = {}
    for now in ("2026-03-01 02:30", "2026-03-01 23:59", "2026-03-02 02:29", "2026-03-02 02:30"):
        script = f"python() {{ echo \"$6\"; }}; PATH={tmp_path}:$PATH; export NOW='{now}'; {command}"
        ids[now] = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert list(ids.values()) == ["nightly-1-2026-03-01"] * 3 + ["nightly-1-2026-03-02"]
