"""`antiphon run` as a user runs it: a real process, real Ray, real MLflow. One Ray run serves many tests."""

import csv
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import soundfile

from tests import small
from tests.pages import Page
from workloads.config.data import Data
from workloads.runtime.event_log import read_event_log

SMALL = [*small.SIZES, *small.TWO_MODELS]
TURNS = ["schedule.burn_in=3", "schedule.period=3", "schedule.turns=2"]


ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def antiphon(*arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ANTIPHON, *arguments], capture_output=True, text=True, env={**os.environ, **(env or {})}, **options
    )


def settings(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def outcome_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") == 1, f"not one line: {done.stdout!r}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ray_run(home) -> dict:
    """With a loader process, which the run in one process has none of."""
    own = [f"data.cache={home}/clips", "train.loaders=1"]
    return outcome_of(antiphon("run", "demo", "--json", "--storage", f"{home}/runs", *settings([*SMALL, *TURNS, *own])))


@pytest.fixture(scope="module")
def local_run(home) -> dict:
    cache = f"data.cache={home}/clips"
    return outcome_of(
        antiphon("run", "demo", "--local", "--json", "--storage", f"{home}/runs", *settings([*SMALL, *TURNS, cache]))
    )


def records(outcome: dict) -> list[dict]:
    return read_event_log(Path(outcome["report"]).parent / "events.jsonl")


def test_the_json_line_holds_the_outcome(ray_run):
    assert ray_run["status"] == "done"
    assert (ray_run["resumed_from_step"], ray_run["steps_run"]) == (0, 9)
    assert ray_run["run_id"].startswith("demo-")
    assert ray_run["seconds"] > 0
    for name, params in (("cnn", 57_090), ("vit", 8_010)):
        row = ray_run["models"][name]
        assert (row["params"], row["steps_taught"], row["steps_learned"]) == (params, 3, 6)
        assert set(row) >= {"val", "test", "checkpoint", "weights_sha256"}
        assert (Path(row["checkpoint"]) / "attempt-2" / "weights.safetensors").is_file()


def test_nobody_else_can_read_what_rays_token_and_scratch_hold(ray_run):
    for folder in (Path("~/.antiphon/ray").expanduser(), Path(tempfile.gettempdir()) / f"antiphon-{os.getuid()}"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_ray_and_local_give_the_same_bits(ray_run, local_run):
    def losses(outcome):
        return [(record["step"], record["values"]) for record in records(outcome) if record["kind"] == "metrics"]

    assert len(losses(local_run)) > 9
    assert losses(ray_run) == losses(local_run)
    for name, row in local_run["models"].items():
        assert ray_run["models"][name]["weights_sha256"] == row["weights_sha256"]
        assert ray_run["models"][name]["test"] == row["test"]


def test_mlflow_has_the_whole_run(ray_run):
    script = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
runs = client.search_runs(["1"], f"tags.`antiphon.run_id` = '{sys.argv[2]}'")
run, = runs
history = client.get_metric_history(run.info.run_id, "cnn/loss")
print(json.dumps([run.info.status, run.data.params, run.data.tags, [[m.step, m.value] for m in history]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, ray_run["tracking"], ray_run["run_id"]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    status, params, tags, history = json.loads(done.stdout.splitlines()[-1])
    assert status == "FINISHED"
    assert params["models.cnn.arch.width"] == "0.1"
    assert tags["schedule"] == "alternate"
    logged = [
        [record["step"], record["values"]["cnn/loss"]]
        for record in records(ray_run)
        if record["kind"] == "metrics" and "cnn/loss" in record["values"]
    ]
    assert sorted(history) == logged


def test_evaluate_gives_the_test_score_of_the_run(ray_run, home, antiphon):
    name = ray_run["models"]["cnn"]["checkpoint"]
    values = settings([*SMALL, f"data.cache={home}/clips"])
    done = antiphon("evaluate", name, "--data", "demo", "--json", *values)
    assert done.code == 0, done.err
    scored = json.loads(done.out)
    assert scored["clips"] == 20
    assert scored["scores"] == pytest.approx(ray_run["models"]["cnn"]["test"], abs=1e-6)


def test_tag_prints_the_tags_of_a_file_and_names_a_broken_one(ray_run, tmp_path, antiphon):
    from workloads.data.synthetic import render, synthetic_clips

    data = Data(synthetic_clips=100, clip_seconds=1.0)
    clip = synthetic_clips(data)[0]
    soundfile.write(tmp_path / "clip.flac", render(clip.clip_id, data, 22_050).numpy(), 22_050)
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    name = ray_run["models"]["vit"]["checkpoint"]
    done = antiphon("tag", name, f"{tmp_path}/clip.flac", f"{tmp_path}/torn.wav", "--top", "3", "--json")
    assert done.code == 1  # one file could not be read
    answer = json.loads(done.out)
    tags = answer["files"][f"{tmp_path}/clip.flac"]
    assert len(tags) == 3
    assert all(0 < probability < 1 for _, probability in tags)
    assert sorted(tags, key=lambda entry: -entry[1]) == tags
    assert list(answer["broken"]) == [f"{tmp_path}/torn.wav"]


def test_report_can_be_written_again(ray_run, tmp_path, antiphon):
    done = antiphon("report", str(Path(ray_run["report"]).parent), "--out", f"{tmp_path}/again.html")
    assert done.code == 0, done.err
    assert (tmp_path / "again.html").read_text() == Path(ray_run["report"]).read_text()


def test_the_reports_command_repeats_the_run_from_another_folder(local_run, tmp_path):
    page = Page(Path(local_run["report"]).read_text())
    command = page.texts["commands"] + " --dry-run --json"
    assert f"--storage {Path(local_run['report']).parents[1]} --local" in command
    path = f"{Path(ANTIPHON).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(Path(local_run["report"]).with_name("recipe.json").read_text())


def test_a_report_that_cannot_be_written_leaves_the_run_done(home, local_run, antiphon):
    """A folder exists at the path of the report: the outcome is written, only the report is missing."""
    blocked = home / "runs" / "blocked" / "report.html" / "folder"
    blocked.mkdir(parents=True)
    values = settings([*SMALL, *TURNS, f"data.cache={home}/clips"])
    done = antiphon(
        *("run", "demo", "--local", "--json", "--tracking", "none", "--storage", f"{home}/runs", "--run-id", "blocked"),
        *values,
    )
    assert done.code == 0, done.err
    outcome = json.loads(done.out)
    assert "the report could not be written" in done.err
    assert json.loads((home / "runs" / "blocked" / "outcome.json").read_text())["status"] == "done"
    for name, row in outcome["models"].items():
        assert row["weights_sha256"] == local_run["models"][name]["weights_sha256"]


def test_workers_share_the_shards_and_storage_is_an_object_store(s3_server, home):
    """20 steps, dropout off: 2 workers x 1 shard, writing to S3, compared with 1 worker x 2 shards in one process; two
    edges have a projection or a query that trains too."""
    s3 = s3_server.client()
    s3.create_bucket(Bucket="runs-here")
    edges = (
        "edges=[{teacher='cnn', student='vit'}, {teacher='vit', student='cnn'},"
        " {teacher='cnn', student='vit', carries='embedding', loss='cosine'},"
        " {teacher='vit', student='cnn', carries='temporal'}]"
    )
    steady = [
        edges,
        "train.shards=2",
        "models.cnn.arch.dropout=0.0",
        f"data.cache={home}/clips",
        "train.checkpoint_every=20",
    ]
    values = settings([*SMALL, *steady, "schedule.burn_in=12", "schedule.period=4", "schedule.turns=2"])
    two = outcome_of(
        antiphon("run", "demo", "--json", "--workers", "2", "--storage", "s3://runs-here/x", *values, env=s3_server.env)
    )
    one = outcome_of(antiphon("run", "demo", "--local", "--json", "--storage", f"{home}/runs", *values))
    script = """
import sys
import time
from pathlib import Path
from orchestrator.storage import object_store, published_folders
from workloads.runtime import checkpoint
state = []
for number, uri in enumerate(sys.argv[1:3]):
    folder = published_folders.fetch(uri, Path(sys.argv[3]) / str(number))
    checkpoint.read_state(folder)
    state.append({name: checkpoint.read_tensors(folder, name) for name in ("cnn", "vit")})
for name in ("cnn", "vit"):
    keys = [key for key in state[0][name] if key.startswith(("model.", "projection."))]
    worst = max((state[0][name][key].float() - state[1][name][key].float()).abs().max().item() for key in keys)
    print(name, len(keys), worst)
"""
    folders = [
        f"s3://runs-here/x/{two['run_id']}/checkpoints/step-00000020-attempt-2",
        f"{home}/runs/{one['run_id']}/checkpoints/step-00000020-attempt-1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *folders, str(home)],
        capture_output=True,
        text=True,
        env={**os.environ, **s3_server.env},
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, compared, worst = line.split()
        assert int(compared) > 10
        assert float(worst) < 1e-5, f"{name} differs by {worst}"
    assert two["report"].startswith("s3://runs-here/x/")
    assert s3.head_object(Bucket="runs-here", Key=f"x/{two['run_id']}/report.html")["ContentLength"] > 1000
    again = antiphon("report", f"s3://runs-here/x/{two['run_id']}", "--out", f"{home}/s3.html", env=s3_server.env)
    assert again.returncode == 0, again.stderr
    found = antiphon("status", two["run_id"], "--storage", "s3://runs-here/x", "--json", "--watch", env=s3_server.env)
    shown = outcome_of(found)
    assert (shown["status"], shown["step"], shown["workers"]) == ("done", 20, 2)
    assert [*shown["nodes"].values()] == [2]
    assert shown["scores"] == {name: row["test"]["mAP"] for name, row in two["models"].items()}


def test_data_and_initial_weights_are_read_from_an_object_store(s3_server, local_run, home, tmp_path):
    from workloads.data.synthetic import render, synthetic_clips

    s3 = s3_server.client()
    s3.create_bucket(Bucket="audio")
    data = Data(synthetic_clips=60, clip_seconds=1.0)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["clip_id", "path", "tags", "fold"])
        for clip in synthetic_clips(data):
            name = f"{clip.clip_id.replace(':', '-')}.wav"
            soundfile.write(tmp_path / name, render(clip.clip_id, data, 16_000).numpy(), 16_000)
            s3.upload_file(str(tmp_path / name), "audio", f"clips/{name}")
            rows.writerow([clip.clip_id, f"clips/{name}", ";".join(clip.tags), clip.fold])
    s3.upload_file(str(tmp_path / "manifest.csv"), "audio", "manifest.csv")
    for part in Path(local_run["models"]["cnn"]["checkpoint"]).glob("attempt-*/*"):
        s3.upload_file(str(part), "audio", f"cnn/{part.name}")
    values = [
        "data.format=manifest",
        "data.manifest=s3://audio/manifest.csv",
        "data.root=s3://audio",
        "data.labels=multi",
    ]
    values += ["models.cnn.init=s3://audio/cnn", "schedule.burn_in=0", "schedule.period=2", "schedule.turns=2"]
    values += [f"data.cache={tmp_path}/clips"]
    done = antiphon(
        "run", "demo", "--local", "--json", "--storage", f"{home}/runs", *settings([*SMALL, *values]), env=s3_server.env
    )
    assert outcome_of(done)["steps_run"] == 4


@pytest.mark.slow
def test_paths_may_be_relative_to_the_working_directory(esc10, home, tmp_path):
    values = [*small.SIZES, "models.cnn.arch={family='mn', width=0.1}", f"models.vit.arch={small.VIT}"]
    values += [*TURNS, f"data.cache={home}/clips", f"data.root={os.path.relpath(esc10, tmp_path)}"]
    done = antiphon(
        "run", "esc10-alternate", "--json", "--tracking", "none", "--storage", "runs", *settings(values), cwd=tmp_path
    )
    assert outcome_of(done)["models"]["cnn"]["test"]["accuracy"] > 0
    assert (tmp_path / "runs").is_dir()


def test_tracking_that_cannot_start_stops_the_run(home, tmp_path, antiphon):
    values = settings([*SMALL, *TURNS, f"data.cache={home}/clips"])
    unreachable = ["--tracking", "http://127.0.0.1:9", "--storage", f"{tmp_path}/runs"]
    done = antiphon("run", "demo", "--local", "--json", *unreachable, *values)
    assert done.code == 75  # the server may answer when the command is repeated
    outcome = json.loads(done.out)
    assert (outcome["status"], outcome["steps_run"]) == ("preempted", 0)
    assert "tracking could not start" in outcome["error"]
    reason, continued = (
        done.err.index("unavailable: tracking could not start"),
        done.err.index("saved at step 0; repeat"),
    )
    assert reason < continued
    assert "preempted" not in done.err
    assert "--tracking none" in outcome["error"]
