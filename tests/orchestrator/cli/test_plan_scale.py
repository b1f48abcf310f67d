"""`antiphon plan --cluster` by what it prints and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.recipes.loader import resolve
from workloads.config.recipe import Recipe

SPEC = """
name = "plans"
image = "registry.example.org/antiphon:0.1.0"
kind = "cluster"
[head]
cpus = 2
memory_gb = 8
price_per_hour = 0.5
[workers.cpu]
cpus = 4
memory_gb = 8
min = 0
max = 8
price_per_hour = 2
[workers.cpu.speed]
tflops = 0.01
[workers.gpu]
cpus = 4
memory_gb = 8
min = 0
max = 8
gpus = 1
"""


@pytest.fixture
def plan(tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Any]:
    """The command on the small demo, in this process: its JSON, else its lines."""

    def invoke(*options: str, settings: tuple[str, ...] = (), spec: str = SPEC) -> Any:
        (tmp_path / "spec.toml").write_text(spec)
        (tmp_path / "tiny.json").write_text(json.dumps(resolve(tiny("demo", "train.shards=12", *settings))))
        words = ["plan", str(tmp_path / "tiny.json"), "--clips", "1000", "--tags", "10", *options]
        done = CliRunner().invoke(app, [word.replace("SPEC", str(tmp_path / "spec.toml")) for word in words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout) if "--json" in options else done.stdout.splitlines()

    return invoke


def row_of(lines: list[str], workers: int) -> list[str]:
    """The cells of the row of so many workers."""
    cells = ([cell.strip() for cell in line.strip("│ ").split("│")] for line in lines if line.startswith("│"))
    return next(row for row in cells if row[0] == str(workers) and len(row) > 3)


def test_json_has_every_row_with_all_terms_and_all_inputs(plan: Any) -> None:
    found = plan("--cluster", "SPEC", "--json")["cluster"]
    rows = found["rows"]
    assert [row["workers"] for row in rows] == [1, 2, 4, 6, 12]  # the divisors of 12 nearest below 1, 2, 4, 8, 16 ...
    assert [row["nodes"] for row in rows] == [1, 1, 1, 2, 3]
    assert (found["group"], found["workers_per_node"], found["tflops"]) == ("cpu", 4, 0.01)
    assert found["price_per_hour"] == {"node": 2.0, "head": 0.5}
    assert found["speed"]["network_gbps"] == 10.0
    assert found["storage_speed"]["requests_per_second"] == 5500.0
    assert found["source"]["clips"] == 1000
    for row in rows:
        assert row["hours"] == pytest.approx(sum(row["seconds"].values()) / 3600)
        assert row["price"] == pytest.approx(row["hours"] * (row["nodes"] * 2 + 0.5))
        assert row["bottleneck"] == max(row["seconds"], key=row["seconds"].get)
        assert row["seconds"]["exchange"] == 0 if row["workers"] == 1 else row["seconds"]["exchange"] > 0


def test_the_terminal_has_a_row_for_each_number_and_says_which_cannot_share(plan: Any) -> None:
    lines = plan("--cluster", "SPEC", "--workers", "12, 5,1")
    assert [line.split()[1] for line in lines if line.startswith("│ ") and line.split()[1].isdecimal()] == [
        "1",
        "5",
        "12",
    ]
    assert row_of(lines, 5)[-1] == "does not divide train.shards = 12; 4 does"
    assert row_of(lines, 1)[3] == "1.00"
    assert "workers      a node of cpu holds 4, each of 0.01 TFLOP/s" in lines
    assert "price        2 for a node and hour, 0.5 for the head; none for requests and traffic" in lines


def test_a_rate_and_a_group_on_the_command_line_replace_those_of_the_spec(plan: Any) -> None:
    found = plan("--cluster", "SPEC", "--group", "gpu", "--tflops", "3", "--json")
    assert (found["cluster"]["group"], found["cluster"]["tflops"]) == ("gpu", 3.0)
    assert found["cluster"]["rows"][0]["price"] is None
    assert "price        workers.gpu.price_per_hour is not in the spec" in plan(
        "--cluster", "SPEC", "--group", "gpu", "--tflops", "3"
    )


def test_without_a_cluster_nothing_is_said_about_one(plan: Any) -> None:
    assert plan("--json")["cluster"] is None
    assert not [line for line in plan() if "bottleneck" in line]


def test_a_cuda_recipe_runs_on_the_gpus(plan: Any) -> None:
    cuda = ("train.device=cuda",)
    assert plan("--cluster", "SPEC", "--tflops", "3", "--json", settings=cuda)["cluster"]["group"] == "gpu"


def test_workers_that_are_spread_have_a_node_each(plan: Any) -> None:
    found = plan("--cluster", "SPEC", "--json", settings=("resources.placement=SPREAD",))["cluster"]
    assert found["workers_per_node"] == 1
    assert [row["nodes"] for row in found["rows"]] == [1, 2, 4, 6, 12]
    assert found["rows"][-1]["note"] == "more nodes than workers.cpu.max = 8"


def test_many_small_files_of_a_store_are_to_be_packed(plan: Any) -> None:
    stored = ('data={format="manifest", manifest="/x.csv", root="s3://bucket/set", labels="multi"}',)
    lines = plan("--cluster", "SPEC", "--workers", "12", settings=stored)
    assert "             `antiphon data pack` makes archives of them, which take fewer requests" in lines
    assert row_of(lines, 12)[5].startswith(("requests", "decoding"))


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        (("--group", "cpu"), SPEC, "--group cpu: is about a cluster; give its spec too: --cluster SPEC"),
        (("--workers", "2"), SPEC, "--workers 2: is about a cluster"),
        (("--clip-kb", "2"), SPEC, "--clip-kb 2.0: is about a cluster"),
        (("--cluster", "nowhere.toml"), SPEC, "spec 'nowhere.toml': neither a .toml file nor shipped"),
        (
            ("--cluster", "SPEC", "--group", "tpu"),
            SPEC,
            "--group 'tpu': no such group in the spec; its groups are cpu, gpu",
        ),
        (
            ("--cluster", "SPEC", "--workers", "2,x"),
            SPEC,
            "--workers '2,x': must be numbers from 1 to 10000, as 1,2,4,8",
        ),
        (("--cluster", "SPEC", "--workers", "0"), SPEC, "--workers '0': must be"),
        (("--cluster", "SPEC", "--workers", "20000"), SPEC, "--workers '20000': must be"),
        (("--cluster", "SPEC", "--clip-kb", "0"), SPEC, "--clip-kb 0: must be above 0"),
        (("--cluster", "SPEC", "--tflops", "0"), SPEC, "--tflops 0: must be above 0"),
        (("--cluster", "SPEC", "--group", "gpu"), SPEC, "workers.gpu.speed.tflops: is not in the spec"),
        (
            ("--cluster", "SPEC"),
            SPEC.replace("cpus = 4", "cpus = 0.5"),
            "--cluster: no group for train.device = 'cpu' holds",
        ),
        (
            ("--cluster", "SPEC"),
            SPEC.replace("gpus = 1", "gpus = 0"),
            "--cluster: workers may run in the groups cpu, gpu; choose one: --group cpu",
        ),
        (("--cluster", "SPEC"), SPEC.replace("tflops = 0.01", "tflop = 1"), "workers.cpu.speed.tflop: unknown key"),
        (
            ("--cluster", "SPEC"),
            SPEC.replace("tflops = 0.01", "spread = -1"),
            "workers.cpu.speed.spread = -1.0: must be 0",
        ),
        (("--cluster", "SPEC"), SPEC.replace("tflops = 0.01", "disk_mb_s = inf"), "disk_mb_s = inf: must be above 0"),
        (
            ("--cluster", "SPEC"),
            SPEC.replace("price_per_hour = 2", "price_per_hour = -2"),
            "price_per_hour = -2.0: must be",
        ),
        (
            ("--cluster", "SPEC"),
            SPEC + "[storage_speed]\nprefixes = 0\n",
            "storage_speed.prefixes = 0: must be 1 or more",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(plan: Any, options: tuple[str, ...], spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        plan(*options, spec=spec)
    assert message in str(refused.value)
