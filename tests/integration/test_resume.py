"""`--resume`: from which checkpoint it continues, what it refuses, and faults on the way."""

import json
import subprocess
from pathlib import Path

import pytest
import soundfile

from orchestrator.reports.overview import overview
from tests import small
from tests.killed import Kill, antiphon, outcome
from workloads.config.data import Data
from workloads.data.synthetic import render, synthetic_clips
from workloads.runtime.event_log import read_event_log

PLAN = ["schedule.burn_in=8", "schedule.period=4", "schedule.turns=2", "train.checkpoint_every=4", "train.keep_last=3"]
TOTAL = 16


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    values = [*small.SIZES, *small.TWO_MODELS, *PLAN, f"data.cache={tmp_path_factory.mktemp('clips')}"]
    return [word for value in values for word in ("--set", value)]


@pytest.fixture
def command(settings, tmp_path) -> list[str]:
    where = ["--storage", str(tmp_path / "runs"), "--tracking", "none"]
    return ["run", "demo", "--local", "--json", *where, *settings]


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    command = ["run", "demo", "--local", "--json", "--tracking", "none", "--storage", str(folder), *settings]
    assert antiphon(command, folder / "out") == 0
    return outcome(folder / "out")


def hashes(result: dict) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in result["models"].items()}


def mistake(arguments: list[str], out: Path) -> str:
    """The error of a command that is refused with exit code 2."""
    assert antiphon(arguments, out) == 2, Path(f"{out}.err").read_text()
    return outcome(out)["error"]


def test_auto_without_an_unfinished_run_prints_so_and_starts_a_new_one(command, uninterrupted, tmp_path):
    assert antiphon([*command, "--resume", "auto"], tmp_path / "out") == 0
    assert "no unfinished run of this recipe" in (tmp_path / "out.err").read_text()
    assert outcome(tmp_path / "out")["resumed_from_step"] == 0
    assert hashes(outcome(tmp_path / "out")) == hashes(uninterrupted)


def test_auto_resumes_the_unfinished_run_of_the_same_recipe(command, uninterrupted, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "other", "--set", "train.seed=7"], out, Kill("after-marker", 1)) == -9
    assert antiphon([*command, "--run-id", "mine"], out, Kill("after-marker", 2)) == -9
    assert antiphon([*command, "--run-id", "done"], out) == 0
    statuses = {entry.id: (entry.status, entry.done, entry.total) for entry in overview(str(tmp_path / "runs"))}
    assert statuses == {"other": ("killed", 4, 16), "mine": ("killed", 8, 16), "done": ("done", 16, 16)}
    assert antiphon([*command, "--resume", "auto"], out) == 0
    result = outcome(out)
    assert (result["run_id"], result["resumed_from_step"], result["steps_run"]) == ("mine", 8, 8)
    assert hashes(result) == hashes(uninterrupted)


def test_what_cannot_be_resumed_is_refused_with_the_fix(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("step", 12)) == -9
    assert "there is such a run" in mistake([*command, "--run-id", "a"], out)
    assert "no such run" in mistake([*command, "--resume", "b"], out)
    error = mistake([*command, "--resume", "a", "--set", "train.seed=3"], out)
    assert "started with train.seed = 0, and this command has 3" in error
    assert "leave one of the two out" in mistake([*command, "--resume", "a", "--run-id", "c"], out)
    assert "must be letters" in mistake([*command, "--run-id", "a/b"], out)


def test_a_finished_run_is_reported_again_and_not_run_again(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out) == 0
    first = outcome(out)
    assert antiphon([*command, "--resume", "a"], out) == 0
    again = outcome(out)
    assert (again["resumed_from_step"], again["steps_run"]) == (TOTAL, 0)
    assert again["models"] == first["models"]


@pytest.mark.parametrize("kind", ["flip", "missing", "marker"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(command, uninterrupted, tmp_path, kind):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("finish", 2)) == -9
    newest = tmp_path / "runs" / "a" / "checkpoints" / "step-00000016-attempt-1"
    damage(newest, kind)
    assert antiphon([*command, "--resume", "a"], out) == 0
    result = outcome(out)
    assert (result["resumed_from_step"], result["steps_run"]) == (12, 4)
    assert hashes(result) == hashes(uninterrupted)
    if kind != "marker":  # without its marker it is no checkpoint
        assert "damaged" in (tmp_path / "out.err").read_text()
        starts = [record for record in read_event_log(newest.parents[1] / "events.jsonl") if record["kind"] == "start"]
        assert "vit.safetensors is missing or differs from its SHA-256" in starts[-1]["damaged"][0]


def damage(folder: Path, kind: str) -> None:
    if kind == "missing":
        (folder / "vit.safetensors").unlink()
    elif kind == "marker":
        (folder / "COMMITTED.json").unlink()
    else:
        content = bytearray((folder / "vit.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "vit.safetensors").write_bytes(content)


def test_without_an_intact_checkpoint_the_user_decides_to_start_a_new_run(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("finish", 2)) == -9
    for folder in (tmp_path / "runs" / "a" / "checkpoints").iterdir():
        damage(folder, "flip")
    error = mistake([*command, "--resume", "a"], out)
    assert "none of this run's 4 checkpoints is intact" in error
    assert "--run-id" in error


@pytest.fixture
def manifest_command(settings, tmp_path) -> list[str]:
    """The command for a data set of 100 clips with a manifest, `m.csv`."""
    data = Data(synthetic_clips=100, clip_seconds=1.0)
    rows = ["clip_id,path,tags,fold"]
    for clip in synthetic_clips(data):
        name = f"{clip.clip_id}.wav"
        soundfile.write(tmp_path / name, render(clip.clip_id, data, 16_000).numpy(), 16_000, subtype="FLOAT")
        rows.append(f"{clip.clip_id},{name},{';'.join(clip.tags)},{clip.fold}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    values = ["data.format=manifest", f"data.manifest={tmp_path}/m.csv", f"data.root={tmp_path}", "data.labels=multi"]
    where = ["--tracking", "none", "--storage", str(tmp_path / "runs")]
    return ["run", "demo", "--local", "--json", *where, *settings, *(word for v in values for word in ("--set", v))]


def test_other_clips_than_at_the_start_are_refused(manifest_command, tmp_path):
    assert antiphon([*manifest_command, "--run-id", "a"], tmp_path / "out", Kill("step", 17)) == -9
    rows = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "m.csv").write_text("\n".join([*rows[:12], *rows[13:]]))
    assert "differ from those this run was started with" in mistake(
        [*manifest_command, "--resume", "a"], tmp_path / "out"
    )


def test_a_lost_event_log_is_restored_from_the_checkpoint(command, uninterrupted, tmp_path):
    out, run = tmp_path / "out", tmp_path / "runs" / "a"
    assert antiphon([*command, "--run-id", "a"], out, Kill("step", 21)) == -9
    (run / "events.jsonl").unlink()
    assert antiphon(["report", str(run), "--out", str(tmp_path / "r.html")], out) == 0  # before it is resumed
    assert antiphon([*command, "--resume", "a"], out) == 0
    logged = [record["step"] for record in read_event_log(run / "events.jsonl") if record["kind"] == "metrics"]
    assert sorted(set(logged)) == list(range(1, TOTAL + 1))


def test_after_sigterm_the_same_command_continues(command, uninterrupted, tmp_path):
    """A job system repeats a command that exited with 75; `--resume auto` is in it from the first time on."""
    out = tmp_path / "out"
    assert antiphon([*command, "--resume", "auto"], out, Kill("sigterm", 11)) == 75
    preempted = outcome(out)
    assert preempted["status"] == "preempted"
    assert antiphon([*command, "--resume", "auto"], out) == 0
    result = outcome(out)
    assert result["resumed_from_step"] == preempted["steps_run"] > 0
    assert result["resumed_from_step"] + result["steps_run"] == TOTAL
    assert hashes(result) == hashes(uninterrupted)


def test_a_clock_that_is_set_back_changes_nothing(command, uninterrupted, tmp_path):
    out = tmp_path / "out"
    # once the second checkpoint is stored, which goes on in the background while later steps are taken
    assert antiphon([*command, "--run-id", "a"], out, Kill("after-marker", 2), clock=-3600) == -9
    assert antiphon([*command, "--resume", "a"], out, clock=-86400) == 0
    result = outcome(out)
    assert result["resumed_from_step"] == 8
    assert hashes(result) == hashes(uninterrupted)
    assert 0 < result["seconds"] < 3600


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system, too small for a run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_and_leaves_the_previous_checkpoint(settings, uninterrupted, tmp_path, small_disk):
    out = tmp_path / "out"
    command = ["run", "demo", "--local", "--json", "--tracking", "none", "--storage", str(small_disk), *settings]
    assert antiphon([*command, "--run-id", "a"], out) == 1
    assert "No space left" in (tmp_path / "out.err").read_text().splitlines()[-1]
    assert outcome(out)["status"] == "failed"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert antiphon([*command, "--resume", "a"], out) == 0
    assert outcome(out)["resumed_from_step"] > 0
    assert hashes(outcome(out)) == hashes(uninterrupted)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_clips(command, tmp_path):
    out = tmp_path / "out"
    diverging = ["--set", "models.vit.optimizer.lr=1e30", "--set", "models.vit.optimizer.warmup=0"]
    assert antiphon([*command, *diverging, "--run-id", "a"], out) == 1
    result = outcome(out)
    assert result["status"] == "failed"
    assert "loss or gradient of vit is not finite" in result["error"]
    (bad,) = json.loads((tmp_path / "runs" / "a" / "bad-numbers.json").read_text())
    assert bad["models"] == ["vit"]
    assert len(bad["clip_ids"]) == len(set(bad["clip_ids"])) == 8
    assert bad["step"] == result["steps_run"]
