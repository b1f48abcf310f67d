"""A comparison over several seeds: runs of their own, in order, and one comparison of all of them."""

import contextlib
import json
from dataclasses import replace

import pytest

from orchestrator.storage import object_store
from orchestrator.training.request import RunRequest
from orchestrator.training.seeds import run_seeds

TURNS = ("compare=true", "schedule.burn_in=1", "schedule.period=1", "schedule.turns=2")


@contextlib.contextmanager
def no_progress(location):
    yield


def compare(request, seeds):
    finished = []
    result = run_seeds(
        request,
        seeds=seeds,
        show_progress=no_progress,
        warn=lambda line: None,
        finished=lambda result: finished.append(result.location.run_id),
    )
    return result, finished


@pytest.fixture
def request_of(tiny, tmp_path):
    def make(*settings, **fields):
        fields = {"storage": str(tmp_path / "runs"), "tracking": "none", "local": True, "run_id": "demo-1"} | fields
        return RunRequest(tiny("demo", *TURNS, *settings), "antiphon run demo", **fields)

    return make


def test_the_run_compares_the_models_of_all_seeds(request_of, tmp_path):
    result, finished = compare(request_of(), 3)
    assert finished == ["demo-1-seed-1", "demo-1-seed-2"]
    assert (result.location.run_id, result.outcome["status"]) == ("demo-1", "done")
    outcomes = [json.loads((tmp_path / "runs" / name / "outcome.json").read_text()) for name in (*finished, "demo-1")]
    for student, control in (("cnn", "cnn_untaught"), ("vit", "vit_untaught")):
        compared = result.outcome["compare"][student]
        assert (compared["seeds"], compared["clips"]) == (3, 20)
        for side, name in (("taught", student), ("untaught", control)):
            scores = [outcome["models"][name]["test"] for outcome in outcomes]
            assert compared[side] == pytest.approx(sum(score["mAP"] for score in scores) / 3)
            assert compared["log_loss"][side] == pytest.approx(sum(score["log_loss"] for score in scores) / 3)
    assert len({outcome["models"]["vit"]["weights_sha256"] for outcome in outcomes}) == 3

    resumed, finished = compare(request_of(run_id="", resume="demo-1"), 3)  # nothing is left to do
    assert resumed.outcome["compare"] == result.outcome["compare"]
    assert resumed.outcome["steps_run"] == 0
    with pytest.raises(ValueError, match="--seeds 2: run demo-1 is done and compares 3"):
        compare(request_of(run_id="", resume="demo-1"), 2)


def test_a_seed_that_is_cut_off_is_continued_and_those_before_it_stay(request_of, tmp_path, monkeypatch):
    def no_space(uri, data):
        raise OSError("disk is full")

    request = request_of()
    created = object_store.create_exclusively
    with monkeypatch.context() as patched:  # the second seed cannot begin
        patched.setattr(
            object_store,
            "create_exclusively",
            lambda uri, data: no_space(uri, data) if "seed-2" in uri else created(uri, data),
        )
        with pytest.raises(OSError, match="disk is full"):
            compare(replace(request, patience_s=0.0), 3)
    first = (tmp_path / "runs" / "demo-1-seed-1" / "outcome.json").read_text()
    assert not (tmp_path / "runs" / "demo-1").exists()
    result, _ = compare(replace(request, run_id="", resume="demo-1"), 3)
    assert result.outcome["compare"]["vit"]["seeds"] == 3
    assert (tmp_path / "runs" / "demo-1-seed-1" / "outcome.json").read_text() == first


def test_resume_auto_continues_the_same_seeds(request_of):
    begun, _ = compare(request_of(run_id="", resume="auto"), 2)
    assert begun.outcome["compare"]["vit"]["seeds"] == 2
    again, _ = compare(request_of(run_id="", resume="auto"), 2)
    assert again.location.run_id != begun.location.run_id  # the first is done, so this is a new one


@pytest.mark.parametrize(
    ("settings", "seeds", "message"),
    [
        (("compare=false",), 2, "--seeds 2: repeats a comparison with untaught controls; add --compare"),
        ((), 0, "--seeds 0: must be 1 to 100"),
        ((), 101, "--seeds 101: must be 1 to 100"),
    ],
)
def test_mistakes(request_of, settings, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(request_of(*settings), seeds)


def test_resuming_what_does_not_exist_is_a_mistake(request_of):
    with pytest.raises(ValueError, match="--resume 'demo-7': no such run"):
        compare(request_of(run_id="", resume="demo-7"), 2)
