"""Studies whose driver is killed, or asked to stop on Ray: the same command goes on where the runs were."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import small
from tests.tiny_search import ANTIPHON, sets
from workloads.runtime.event_log import read_event_log

STEPS = 120
STUDY = f"""
name = "long"
recipe = "demo"
folds = [1]
seeds = [0]
steps = {STEPS}
standard = ["mutual"]
"""


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a study of two runs, each with a checkpoint every ten steps."""
    file, cache = tmp_path / "long.toml", tmp_path_factory.getbasetemp() / "clips"
    file.write_text(STUDY)
    settings = [*small.SIZES, *small.TWO_MODELS, f"data.cache={cache}", "train.eval_every=40", "train.log_every=10"]
    settings += ["train.checkpoint_every=10"]
    storage = ["--storage", str(tmp_path / "runs"), "--tracking", "none"]
    return [ANTIPHON, "study", str(file), *storage, *sets(*settings)]


def wait_for_a_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/*/COMMITTED.json")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def began_at(folder: Path) -> list[int]:
    return [record["step"] for record in read_event_log(folder / "events.jsonl") if record["kind"] == "start"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "kill", "code"),
    [(["--local"], signal.SIGKILL, -9), (["--local"], signal.SIGTERM, 75), ([], signal.SIGTERM, 75)],
)
def test_the_same_command_goes_on_from_the_newest_checkpoint(command, tmp_path, where, kill, code):
    first = tmp_path / "runs" / "long-plain-fold1-seed0"
    process = subprocess.Popen([*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_a_checkpoint(process, first)
    os.kill(process.pid, kill)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    assert not (first / "outcome.json").exists() or json.loads((first / "outcome.json").read_text())["status"] != "done"
    done = subprocess.run([*command, *where, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout)
    assert (outcome["status"], outcome["runs"]) == ("done", 2)
    assert {*outcome["methods"]["mutual"]["students"]} == {"cnn", "vit"}
    starts = began_at(first)
    assert starts[0] == 0
    assert 10 <= starts[-1] < STEPS, "not from the beginning"
    spent = {record["step"] for record in read_event_log(first / "events.jsonl") if record["kind"] == "cost"}
    assert {*range(10, STEPS + 1, 10)} <= spent, "each part of the training is paid for"


@pytest.mark.slow
def test_every_method_of_the_shipped_study_teaches(tmp_path, tmp_path_factory):
    """Of the smallest models, over four steps, on one fold with one seed."""
    lines = ['extends = "study-demo"', "folds = [1]", "seeds = [0]", "steps = 4", "burn_in = 2", "periods = [1, 2]"]
    file, cache = tmp_path / "few.toml", tmp_path_factory.getbasetemp() / "clips"
    file.write_text("\n".join(lines))
    settings = sets(*small.SIZES, *small.TWO_MODELS, f"data.cache={cache}")
    words = [
        ANTIPHON,
        "study",
        str(file),
        "--storage",
        str(tmp_path / "runs"),
        "--tracking",
        "none",
        "--local",
        "--json",
    ]
    done = subprocess.run([*words, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout)
    assert outcome["left_out"] == {}
    assert (outcome["runs"], outcome["failed"]) == (11, {})
    taught = {name: [*row["students"]] for name, row in outcome["methods"].items()}
    assert taught["embedding"] == taught["temporal"] == taught["one_way-cnn-to-vit"] == ["vit"]
    assert taught["generations"] == taught["alternate-1"] == taught["ensemble"] == ["cnn", "vit"]
