"""`antiphon cluster render` by its exit codes and output: what it checks before it writes."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.spec_file import load_spec
from cluster.work_command import PROGRAM
from orchestrator.cli.app import app

run = CliRunner()
SPEC = """
name = "nightly"
image = "registry.example.org/antiphon:0.1.0"
[work]
recipe = "demo"
id = "nightly-1"
storage = "s3://bucket/runs"
tracking = "none"
arguments = ["--workers", "2", "--set", "train.shards=2"]
[head]
cpus = 2
memory_gb = 8
[workers.cpu]
cpus = 4
memory_gb = 8
min = 2
max = 2
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    return path


def refusal(path: Path, before: str, after: str, *options: str) -> str:
    """What the command says to a spec in which something is replaced; it must refuse it and write nothing."""
    assert before in SPEC
    path.write_text(SPEC.replace(before, after, 1))
    result = run.invoke(app, ["cluster", "render", str(path), "--to", "kuberay", *options])
    assert result.exit_code != 0
    assert result.stdout == ""
    return str(result.exception) if isinstance(result.exception, ValueError) else result.stderr


def parsed(words: list[str]) -> dict[str, Any]:
    """The words of a command, parsed by the command line itself."""
    command: Any = typer.main.get_command(app)
    values: dict[str, Any] = command.commands[words[0]].make_context("antiphon", words[1:]).params
    return values


def test_the_shipped_spec_is_rendered_and_its_entrypoint_is_a_command() -> None:
    result = run.invoke(app, ["cluster", "render", "example", "--to", "kuberay"])
    assert result.exit_code == 0, result.stderr
    policy, cron = yaml.safe_load_all(result.stdout)
    assert (policy["kind"], cron["kind"]) == ("NetworkPolicy", "RayCronJob")
    words = shlex.split(cron["spec"]["jobTemplate"]["entrypoint"])
    assert tuple(words[:3]) == PROGRAM
    values = parsed(words[3:])
    assert (values["recipe"], values["resume"]) == ("search-demo", "auto")
    assert values["search_id"].startswith("nightly-search-$(date")


@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_another_kind_of_the_same_spec(kind: str, spec: Path) -> None:
    result = run.invoke(app, ["cluster", "render", "example", "--to", "kuberay", "--kind", kind])
    assert result.exit_code == 0, result.stderr
    *_, manifest = yaml.safe_load_all(result.stdout)
    assert manifest["kind"] == {"job": "RayJob", "cluster": "RayCluster"}[kind]
    if kind == "job":
        values = parsed(shlex.split(manifest["spec"]["entrypoint"])[3:])
        assert values["search_id"] == load_spec("example").work.id  # type: ignore[union-attr]


def test_a_cluster_s_text_says_how_to_submit_the_work_to_it(spec: Path) -> None:
    result = run.invoke(app, ["cluster", "render", str(spec), "--to", "kuberay", "--kind", "cluster"])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("# antiphon submit ")]
    command: Any = typer.main.get_command(app)
    values = command.commands["submit"].make_context("submit", shlex.split(line)[3:]).params
    assert (values["address"], values["name"], values["installed"]) == ("http://localhost:8265", "nightly-1", True)
    work = parsed(values["arguments"])
    assert (work["recipe"], work["storage"], work["workers"]) == ("demo", "s3://bucket/runs", "2")


def test_out_is_written_and_the_same_text_as_printed(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "job.sh"
    command = ["cluster", "render", str(spec), "--to", "slurm"]
    result = run.invoke(app, [*command, "--out", str(out)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert out.read_text() == run.invoke(app, command).stdout


def test_services_and_unknown_targets_are_refused(spec: Path) -> None:
    assert "serve = None: must be given for kind service" in refusal(spec, "name", "name", "--kind", "service")
    result = run.invoke(app, ["cluster", "render", str(spec), "--to", "nomad"])
    assert "must be one of kuberay, autoscaler, slurm" in str(result.exception)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('recipe = "demo"', 'recipe = "dmeo"', "recipe 'dmeo': neither"),
        ('"train.shards=2"', '"train.shrads=2"', "train.shrads: unknown key"),
        ('"--workers", "2"', '"--workers", "3"', "workers"),
        ('"--workers", "2"', '"--wrokers", "2"', "--wrokers"),
        ('"--workers", "2"', '"--workers", "two"', "must be a number of workers (4), or a range"),
        ('id = "nightly-1"', 'id = "mlflow.db"', "must not begin with"),
        ('tracking = "none"', 'tracking = "https://user:pw@mlflow"', "holds a password or token"),
        ("[head]", '[env]\nURI = "postgres://user:pw@host/db"\n[head]', "env.URI = 'postgres://user:***@host/db'"),
    ],
)
def test_the_command_in_the_spec_is_checked_first(spec: Path, before: str, after: str, message: str) -> None:
    said = refusal(spec, before, after)
    assert message in said
    assert "user:pw" not in said


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("cpus = 1\nmemory_gb = 8\nmin = 1\nmax = 1", "the groups' max nodes hold 1 of 1 CPU each at once"),
        ("cpus = 1\nmemory_gb = 8\nmin = 1\nmax = 2", "the groups' min nodes hold 1 of 1 CPU each at once"),
    ],
)
def test_workers_must_fit_into_the_groups(spec: Path, after: str, message: str) -> None:
    group = "cpus = 4\nmemory_gb = 8\nmin = 2\nmax = 2"
    options = '"--workers", "2", "--set", "train.threads=1", "--set", "train.loaders=0",'
    text = SPEC.replace('"--workers", "2",', options).replace(group, after)
    spec.write_text(text)
    result = run.invoke(app, ["cluster", "render", str(spec), "--to", "kuberay"])
    assert message in str(result.exception)
    waiting = text.replace(options, f'{options} "--wait", "60",')
    spec.write_text(waiting)
    assert (run.invoke(app, ["cluster", "render", str(spec), "--to", "kuberay"]).exit_code == 0) is ("min" in message)


def test_of_a_recipe_in_the_image_the_options_are_checked(spec: Path) -> None:
    spec.write_text(SPEC.replace('"demo"', '"/recipes/mine.toml"'))
    assert run.invoke(app, ["cluster", "render", str(spec), "--to", "kuberay"]).exit_code == 0
    spec.write_text(SPEC.replace('"demo"', '"/recipes/mine.toml"').replace("--workers", "--wrokers"))
    result = run.invoke(app, ["cluster", "render", str(spec), "--to", "kuberay"])
    assert result.exit_code != 0
    assert "--wrokers" in result.stderr
