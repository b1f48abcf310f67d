"""What a run's records say of how it was started: the options that start the same run again."""

import pytest

from orchestrator.cli.options import command_line
from orchestrator.recipes.loader import load_recipe
from orchestrator.runs.location import location_of
from orchestrator.training.request import RunRequest


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, "--storage /runs"),
        ({"workers": 2, "tracking": "http://there:5000"}, "--storage /runs --workers 2 --tracking http://there:5000"),
        ({"local": True, "tracking": "none", "resume": "auto"}, "--storage /runs --tracking none --local"),
        ({"tracking": "sqlite:////a/mlflow.db?mode=ro"}, "--storage /runs --tracking 'sqlite:////a/mlflow.db?mode=ro'"),
        ({"tracking": "postgresql://u:secret@h/db"}, "--storage /runs"),
        ({"tracking": "https://me@h"}, "--storage /runs"),
        ({"address": "auto", "run_id": "demo-1"}, "--storage /runs --address auto"),
    ],
)
def test_the_options_that_repeat_a_run_make_a_new_one_beside_it(given, options):
    assert RunRequest(load_recipe("demo"), "antiphon run demo", **given).repeat_options("/runs/demo-1") == options


def test_options_are_quoted_for_a_shell():
    request = RunRequest(load_recipe("demo"), "antiphon run demo")
    assert request.repeat_options("/it's my runs/demo-1") == """--storage '/it'"'"'s my runs'"""
    assert request.repeat_options("s3://bucket/x/demo-1") == "--storage s3://bucket/x"


def test_a_database_named_from_this_folder_is_found_from_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = RunRequest(load_recipe("demo"), "antiphon run demo", tracking="sqlite:///mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert request.repeat_options("/runs/demo-1") == f"--storage /runs --tracking {uri}"
    assert location_of("runs", "demo-1", request.tracking).tracking == uri


def test_a_program_that_the_shell_would_not_find_is_recorded_with_its_path(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "antiphon"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bin/antiphon", "run", "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_line() == f"{program} run demo"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command_line() == "antiphon run demo"
