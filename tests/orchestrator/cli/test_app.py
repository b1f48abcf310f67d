"""The command line: light imports, mistakes in one line, exit codes, JSON."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from workloads.runtime.checkpoint_store import AlreadyDriven

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def antiphon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, *arguments], capture_output=True, text=True)


def test_help_imports_nothing_heavy():
    script = "import sys, orchestrator.cli.app; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torch", "ray", "mlflow", "pandas", "numpy", "fsspec", "plotly", "sklearn", "pydantic"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = antiphon("--help")
    assert done.returncode == 0
    for word in ("run", "recipes", "data", "evaluate", "tag", "report", "cluster"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dmeo"], "recipe 'dmeo': neither a .toml or .json file nor shipped; did you mean 'demo'? shipped are"),
        (["run", "demo", "--set", "train.seed=x"], "train.seed = 'x'"),
        (["run", "demo", "--address", "ray://head:10001"], "ray job submit"),
        (["run", "demo", "--workers", "2"], "--set train.shards=2"),
        (["run", "demo", "--workers", "2", "--set", "train.shards=2", "--local"], "--local runs in this process alone"),
        (["run", "esc10", "--set", "data.root=/nowhere"], "/nowhere"),
        (["run", "demo", "--set", "data.test_fold=9"], "test_fold"),
        (
            ["run", "demo", "--storage", "s3://me:secret@there"],
            "--storage 's3://me:***@there': holds a password or token",
        ),
        (
            ["run", "demo", "--set", "data.root=https://u:secret@h"],
            "data.root = 'https://***@h': holds a password or token",
        ),
        (["run", "demo", "--set", "edges.0.weight.x=http://h/?token=secret"], "x=http://h/?token=***"),
        (
            ["tag", "s3://b/r/models/cnn?X-Amz-Signature=secret", "x.wav"],
            "URI 's3://b/r/models/cnn?X-Amz-Signature=***'",
        ),
        (["run", "demo", "--patience", "-1"], "--patience -1: must be 0 seconds or more"),
        (["run", "demo", "--run-id", "a/b"], "run id 'a/b': must be letters, digits"),
        (["run", "demo", "--run-id", "mlflow.db"], "run id 'mlflow.db': must not begin with mlflow.db or artifacts"),
        (["run", "demo", "--run-id", "artifacts"], "run id 'artifacts': must not begin with mlflow.db or artifacts"),
        (["run", "demo", "--storage", "memory://x"], "URI 'memory://x': no such storage; use a local path or s3://"),
        (["run", "demo", "--storage", "gopher://there"], "URI 'gopher://there'"),
        (["evaluate", "/nowhere/models/cnn", "--data", "demo"], "checkpoint '/nowhere/models/cnn'"),
        (["report", "/nowhere"], "run '/nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(antiphon, arguments, message, tmp_path):
    storage = ["--storage", str(tmp_path)] if arguments[0] == "run" and "--storage" not in arguments else []
    done = antiphon(*arguments, *storage)
    assert (done.code, done.out) == (2, ""), done.err
    (line,) = done.err.strip().splitlines()
    assert message in line
    assert "secret" not in line
    assert list(tmp_path.iterdir()) == []  # nothing was started


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["rnu", "demo"], "'run'"), (["data", "chekc"], "'check'"), (["run", "demo", "--sedes", "3"], "--seeds")],
)
def test_commands_and_options_are_told_the_nearest_one(antiphon, arguments, meant):
    done = antiphon(*arguments)
    assert done.code == 2
    assert meant in done.err.splitlines()[-1]


def test_an_argument_too_many_is_printed_without_its_password(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    secret = "secret-" * 12
    done = antiphon("run", "demo", f"https://me@corp.com:{secret}@there")
    assert done.returncode == 2
    assert "(https://***@there)" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_traceback_is_printed_without_a_password(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    script = """
import sys
from orchestrator.cli import app
@app.app.command()
def boom():
    raise RuntimeError("the server at https://me:" + "secret-" * 12 + "@there refused")
sys.argv = ["antiphon", "boom"]
app.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: the server at https://***@there refused"
    assert "secret-secret" not in done.stderr


def test_the_version_is_printed():
    done = antiphon("--version")
    assert (done.returncode, done.stdout) == (0, f"antiphon {version('antiphon')}\n")


@pytest.mark.parametrize(
    ("closed", "printed"), [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&- 2>&-", False)]
)
def test_a_stream_that_the_caller_has_closed_is_no_fault(closed, printed):
    """As some daemons start programs."""
    done = subprocess.run(f"'{ANTIPHON}' --version {closed}", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"antiphon {version('antiphon')}\n" if printed else "")
    mistake = subprocess.run(f"'{ANTIPHON}' run dmeo {closed}", shell=True, capture_output=True, text=True)
    assert mistake.returncode == 2
    assert ("did you mean 'demo'" in mistake.stderr) is ("2>&-" not in closed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a full disk")
def test_a_full_disk_is_one_line_also_where_stdout_is_on_it():
    for arguments in (["recipes"], ["recipes", "--json"], ["run", "dmeo", "--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([ANTIPHON, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
        (line,) = done.stderr.splitlines()
        assert (done.returncode, line[:7]) == ((2, "mistake") if "run" in arguments else (1, "failed:"))


def test_a_run_that_another_process_drives_is_no_final_failure(antiphon, monkeypatch):
    """Job systems repeat a command that ends with 75, and give up at 2."""

    def busy(*_, **__):
        raise AlreadyDriven("run 'r': process 7 on host is still working on it")

    monkeypatch.setattr("orchestrator.training.driver.run", busy)
    done = antiphon("run", "demo", "--json")
    assert done.code == 75
    assert done.err == "busy: run 'r': process 7 on host is still working on it\n"
    assert json.loads(done.out)["mistake"] is False


@pytest.mark.parametrize(
    "command", [["tag", "s3://x/y", "a.wav"], ["report", "s3://x/y"], ["track", "replay", "s3://x/y"]]
)
def test_a_store_without_credentials_is_one_line(monkeypatch, tmp_path, command):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    done = antiphon(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines()[-1] == "failed: Unable to locate credentials"


def test_links_in_a_circle_are_one_line(antiphon, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = antiphon("run", "demo", "--storage", tmp_path / "runs", "--set", f"models.cnn.init={tmp_path}/a")
    assert done.code == 2
    assert f"URI '{tmp_path}/a': its links lead in a circle; give the file itself" in done.err


def test_a_mistake_with_json_is_an_object_too():
    done = antiphon("run", "dmeo", "--json")
    assert done.returncode == 2
    printed = json.loads(done.stdout)
    assert (printed["status"], printed["mistake"]) == ("failed", True)
    assert "recipe 'dmeo'" in printed["error"]


def test_dry_run_prints_recipe_and_phases():
    plan = ("schedule.burn_in=120", "schedule.period=60", "schedule.turns=2", "edges.0.weight=0.5")
    done = antiphon("run", "demo", "--dry-run", *(word for value in plan for word in ("--set", value)))
    assert done.returncode == 0
    assert "3 phases, 240 steps" in done.stdout
    assert "cnn -> vit (0.5)" in done.stdout


def test_what_a_dry_run_prints_trains_without_the_orchestrator(tmp_path):
    small = [
        "compare=false",
        "data.synthetic_clips=100",
        "data.clip_seconds=1.0",
        "schedule.burn_in=1",
        "schedule.period=1",
        "schedule.turns=2",
    ]
    small += ['models.cnn.arch={family="mn", width=0.1}', 'models.vit.arch={family="vit", dim=16, depth=1, heads=2}']
    small += [f"data.cache={tmp_path}/clips", "train.shard_size=8"]
    done = antiphon("run", "demo", "--dry-run", "--json", *[word for value in small for word in ("--set", value)])
    (tmp_path / "resolved.json").write_text(done.stdout)
    assert json.loads(done.stdout)["schedule"]["turns"] == 2
    command = [sys.executable, "-m", "workloads", "resolved.json", "out"]
    trained = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "models" / "vit" / "weights.safetensors").is_file()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert "out: already exists" in again.stderr


def test_recipes_are_listed_with_their_headers():
    listed = json.loads(antiphon("recipes", "--json").stdout)["recipes"]
    assert {"demo", "esc10", "generations"} <= {entry["name"] for entry in listed}
    assert "antiphon run demo" in antiphon("recipes").stdout


def test_data_check_counts_clips_and_lists_broken_files(esc10, tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "meta").mkdir()
    lines = (esc10 / "meta" / "esc50.csv").read_text().splitlines()
    lines_kept = lines[:1] + lines[1::4]
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(lines_kept) + "\n")
    names = [line.split(",")[0] for line in lines_kept[1:]]
    for name in names[2:]:
        os.symlink(esc10 / "audio" / name, tmp_path / "audio" / name)
    (tmp_path / "audio" / names[0]).write_bytes(b"")
    base = ["data", "check", "esc10", "--set", f"data.root={tmp_path}", "--set", f"data.cache={tmp_path}/cache"]
    done = antiphon(*base, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert sum(printed["clips"].values()) == len(names) - 2
    assert {entry["clip_id"] for entry in printed["quarantined"]} == {Path(name).stem for name in names[:2]}
    too_many = antiphon(*base, "--set", "data.max_broken_share=0.01")
    assert too_many.returncode == 2
    assert "data.max_broken_share" in too_many.stderr


def test_with_json_nothing_else_is_on_stdout():
    script = """
import os
from orchestrator.cli.options import only_json
with only_json(True) as emit:
    print("noise")
    os.system("echo more")
    emit({"a": 1})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == '{"a": 1}\n'
    assert "noise" in done.stderr
    assert "more" in done.stderr
