"""`--resume`: what it goes on from, what it refuses, and what goes wrong on the way."""

import json
import subprocess
from pathlib import Path

import pytest
import soundfile

from tests import small
from tests.killed import Kill, antiphon, outcome
from workloads.config.recipe import Data
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
def whole(settings, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    command = ["run", "demo", "--local", "--json", "--tracking", "none", "--storage", str(folder), *settings]
    assert antiphon(command, folder / "out") == 0
    return outcome(folder / "out")


def hashes(ended: dict) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in ended["models"].items()}


def mistake(arguments: list[str], out: Path) -> str:
    """The one line that a refused command ends with."""
    assert antiphon(arguments, out) == 2, Path(f"{out}.err").read_text()
    return outcome(out)["error"]


def test_auto_without_anything_to_resume_says_so_and_starts_afresh(command, whole, tmp_path):
    assert antiphon([*command, "--resume", "auto"], tmp_path / "out") == 0
    assert "no unfinished run of this recipe" in (tmp_path / "out.err").read_text()
    assert outcome(tmp_path / "out")["resumed_from_step"] == 0
    assert hashes(outcome(tmp_path / "out")) == hashes(whole)


def test_auto_takes_the_unfinished_run_of_this_very_recipe(command, whole, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "other", "--set", "train.seed=7"], out, Kill("step", 10)) == -9
    assert antiphon([*command, "--run-id", "mine"], out, Kill("step", 19)) == -9
    assert antiphon([*command, "--run-id", "done"], out) == 0
    assert antiphon([*command, "--resume", "auto"], out) == 0
    ended = outcome(out)
    assert (ended["run_id"], ended["resumed_from_step"], ended["steps_run"]) == ("mine", 8, 8)
    assert hashes(ended) == hashes(whole)


def test_what_cannot_be_resumed_is_refused_with_the_fix(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("step", 12)) == -9
    assert "there is such a run" in mistake([*command, "--run-id", "a"], out)
    assert "no such run" in mistake([*command, "--resume", "b"], out)
    said = mistake([*command, "--resume", "a", "--set", "train.seed=3"], out)
    assert "started with train.seed = 0, and this command has 3" in said
    assert "leave one of the two out" in mistake([*command, "--resume", "a", "--run-id", "c"], out)
    assert "must be letters" in mistake([*command, "--run-id", "a/b"], out)


def test_a_done_run_is_told_again_and_nothing_is_run(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out) == 0
    first = outcome(out)
    assert antiphon([*command, "--resume", "a"], out) == 0
    again = outcome(out)
    assert (again["resumed_from_step"], again["steps_run"]) == (TOTAL, 0)
    assert again["models"] == first["models"]


@pytest.mark.parametrize("harm", ["flip", "missing", "marker"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(command, whole, tmp_path, harm):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("finish", 2)) == -9
    newest = tmp_path / "runs" / "a" / "checkpoints" / "step-00000016-attempt-1"
    damage(newest, harm)
    assert antiphon([*command, "--resume", "a"], out) == 0
    ended = outcome(out)
    assert (ended["resumed_from_step"], ended["steps_run"]) == (12, 4)
    assert hashes(ended) == hashes(whole)
    if harm != "marker":  # without its marker it is no checkpoint at all
        assert "damaged" in (tmp_path / "out.err").read_text()
        starts = [record for record in read_event_log(newest.parents[1] / "events.jsonl") if record["kind"] == "start"]
        assert "vit.safetensors is missing or differs from its SHA-256" in starts[-1]["damaged"][0]


def damage(folder: Path, harm: str) -> None:
    if harm == "missing":
        (folder / "vit.safetensors").unlink()
    elif harm == "marker":
        (folder / "COMMITTED.json").unlink()
    else:
        content = bytearray((folder / "vit.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (folder / "vit.safetensors").write_bytes(content)


def test_if_no_checkpoint_is_whole_starting_afresh_is_the_users_decision(command, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("finish", 2)) == -9
    for folder in (tmp_path / "runs" / "a" / "checkpoints").iterdir():
        damage(folder, "flip")
    said = mistake([*command, "--resume", "a"], out)
    assert "none of this run's 4 checkpoints is intact" in said
    assert "--run-id" in said


@pytest.fixture
def own_clips(settings, tmp_path) -> list[str]:
    """The command for a manifest of 100 clips of one's own, `m.csv`; its run is called a."""
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


def test_other_clips_than_it_began_with_are_refused(own_clips, tmp_path):
    assert antiphon([*own_clips, "--run-id", "a"], tmp_path / "out", Kill("step", 17)) == -9
    rows = (tmp_path / "m.csv").read_text().splitlines()
    (tmp_path / "m.csv").write_text("\n".join([*rows[:12], *rows[13:]]))
    assert "differ from those this run was started with" in mistake([*own_clips, "--resume", "a"], tmp_path / "out")


def test_a_lost_spool_comes_back_from_the_checkpoint(command, whole, tmp_path):
    out, run = tmp_path / "out", tmp_path / "runs" / "a"
    assert antiphon([*command, "--run-id", "a"], out, Kill("step", 21)) == -9
    (run / "events.jsonl").unlink()
    assert antiphon(["report", str(run), "--out", str(tmp_path / "r.html")], out) == 0  # before it is resumed
    assert antiphon([*command, "--resume", "a"], out) == 0
    logged = [record["step"] for record in read_event_log(run / "events.jsonl") if record["kind"] == "metrics"]
    assert sorted(set(logged)) == list(range(1, TOTAL + 1))


def test_sigterm_then_the_same_command_goes_on(command, whole, tmp_path):
    """A job system re-submits what exited with 75; the command says --resume auto from the first time on."""
    out = tmp_path / "out"
    assert antiphon([*command, "--resume", "auto"], out, Kill("sigterm", 11)) == 75
    cut = outcome(out)
    assert cut["status"] == "preempted"
    assert antiphon([*command, "--resume", "auto"], out) == 0
    ended = outcome(out)
    assert ended["resumed_from_step"] == cut["steps_run"] > 0
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    assert hashes(ended) == hashes(whole)


def test_a_clock_that_goes_backwards_changes_nothing(command, whole, tmp_path):
    out = tmp_path / "out"
    assert antiphon([*command, "--run-id", "a"], out, Kill("step", 17), clock=-3600) == -9
    assert antiphon([*command, "--resume", "a"], out, clock=-86400) == 0
    ended = outcome(out)
    assert ended["resumed_from_step"] == 8
    assert hashes(ended) == hashes(whole)
    assert 0 < ended["seconds"] < 3600


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, too small for a run."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(settings, whole, tmp_path, small_disk):
    out = tmp_path / "out"
    command = ["run", "demo", "--local", "--json", "--tracking", "none", "--storage", str(small_disk), *settings]
    assert antiphon([*command, "--run-id", "a"], out) == 1
    assert "No space left" in (tmp_path / "out.err").read_text().splitlines()[-1]
    assert outcome(out)["status"] == "failed"
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert antiphon([*command, "--resume", "a"], out) == 0
    assert outcome(out)["resumed_from_step"] > 0
    assert hashes(outcome(out)) == hashes(whole)


def test_numbers_that_are_not_finite_end_the_run_and_name_the_clips(command, tmp_path):
    out = tmp_path / "out"
    wild = ["--set", "models.vit.optimizer.lr=1e30", "--set", "models.vit.optimizer.warmup=0"]
    assert antiphon([*command, *wild, "--run-id", "a"], out) == 1
    ended = outcome(out)
    assert ended["status"] == "failed"
    assert "loss or gradient of vit is not finite" in ended["error"]
    (bad,) = json.loads((tmp_path / "runs" / "a" / "bad-numbers.json").read_text())
    assert bad["models"] == ["vit"]
    assert len(bad["clip_ids"]) == len(set(bad["clip_ids"])) == 8
    assert bad["step"] == ended["steps_run"]
