"""train.compile: compiled networks train as uncompiled ones, and a machine that cannot compile is reported at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.resumed import rows_uninterrupted_and_resumed
from workloads.runtime.event_log import read_event_log
from workloads.train import loop

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
PLAN = ("schedule.burn_in=3", "schedule.period=3", "schedule.turns=2")

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler, and none is installed",
)


def events_of(run):
    return read_event_log(run.session.work_dir.parent / "events.jsonl")


def curves(run) -> dict[tuple[int, str], float]:
    return {
        (record["step"], key): value
        for record in events_of(run)
        if record["kind"] == "metrics"
        for key, value in record["values"].items()
        if key.endswith("loss")
    }


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_trains_the_same_under_the_same_names(tiny, start):
    plain, compiled = start(tiny("demo", *PLAN)), start(tiny("demo", *PLAN, "train.compile=true"))
    assert loop(plain) == loop(compiled) == "done"
    assert all(state.tagger.backbone._compiled_call_impl for state in compiled.pool.states.values())
    expected, actual = curves(plain), curves(compiled)
    assert len(expected) > 15
    assert actual == pytest.approx(expected, abs=1e-3)
    for name in ("cnn", "vit"):
        files = [run.session.work_dir.parent / "models" / name / "weights.safetensors" for run in (plain, compiled)]
        one, other = (sorted(safe_open(file, "pt").keys()) for file in files)
        assert one == other


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_resumes_with_the_same_bits(tiny, start):
    recipe = tiny("demo", *PLAN, "train.compile=true")
    one, other = rows_uninterrupted_and_resumed(start, recipe)
    assert {name: row["weights_sha256"] for name, row in one.items()} == {
        name: row["weights_sha256"] for name, row in other.items()
    }


def test_without_a_compiler_a_run_is_refused_before_it_trains(tmp_path):
    command = [ANTIPHON, "run", "demo", "--local", "--tracking", "none", "--storage", str(tmp_path / "runs"), "--json"]
    done = subprocess.run(
        [*command, "--set", "train.compile=true", "--set", "train.threads=1"],
        capture_output=True,
        text=True,
        env={**os.environ, "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
    )
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["mistake"], outcome["steps_run"]) == (2, True, 0)
    assert "train.compile = True: torch cannot compile on cpu here" in outcome["error"]
    assert "install a C++ compiler" in outcome["error"]
