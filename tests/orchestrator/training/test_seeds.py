"""A comparison over several seeds: runs of their own, in order, and one comparison of all of them."""

import json
import time
from dataclasses import replace

import pytest

from orchestrator.storage import object_store
from orchestrator.training.request import RunRequest
from orchestrator.training.seeds import run_seeds
from tests.trained_runs import no_progress

TURNS = ("compare=true", "schedule.burn_in=1", "schedule.period=1", "schedule.turns=2")


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
    began = time.monotonic()
    result, finished = compare(request_of(), 3)
    took = time.monotonic() - began
    assert finished == ["demo-1-seed-1", "demo-1-seed-2"]
    assert (result.location.run_id, result.outcome["status"]) == ("demo-1", "done")
    outcomes = [json.loads((tmp_path / "runs" / name / "outcome.json").read_text()) for name in (*finished, "demo-1")]
    seconds = [outcome["seconds"] for outcome in outcomes]
    assert min(seconds) > 0
    assert sum(seconds) <= took + 0.2, "each run has its own seconds, rounded to 0.1"
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


def test_seeds_of_other_clips_are_not_compared(request_of, tmp_path):
    """The labels of the test clips are alike; the other run's taggers name another data set."""
    compare(request_of(), 1)
    first = tmp_path / "runs" / "demo-1"
    for state in first.glob("models/*/*/state.json"):
        state.write_text(state.read_text().replace(result_fingerprint(state), "0" * 64))
    other = replace(request_of(run_id="demo-2"), seed_runs=(str(first),))
    compared, _ = compare(other, 1)
    assert compared.outcome["status"] == "failed"
    assert "the seeds were trained on other clips; give every run the same data" in compared.outcome["error"]


def result_fingerprint(state):
    return json.loads(state.read_text())["data"]["fingerprint"]


def test_what_would_stop_the_last_run_is_found_before_the_first(request_of, tmp_path):
    compare(request_of("compare=false"), 1)
    with pytest.raises(ValueError, match="--run-id 'demo-1': there is such a run"):
        compare(request_of(), 2)
    with pytest.raises(ValueError, match="--resume 'demo-1': the run was started with compare = false"):
        compare(request_of(run_id="", resume="demo-1"), 2)
    assert not (tmp_path / "runs" / "demo-1-seed-1").exists()


def test_a_run_whose_seeds_were_begun_is_not_resumed_alone(request_of, tmp_path):
    member = request_of("train.seed=1", run_id="demo-1-seed-1")
    compare(member, 1)
    compare_later = request_of(run_id="", resume="demo-1")
    with pytest.raises(ValueError, match=r"there are runs of its other seeds \(demo-1-seed-1, \.\.\.\); repeat"):
        compare(compare_later, 1)


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


def test_an_id_that_cannot_be_one_is_named_as_it_was_given(request_of):
    with pytest.raises(ValueError, match="run id 'küche 1': must be letters"):
        compare(request_of(run_id="küche 1"), 2)


def test_a_dry_run_finds_the_same_mistakes(antiphon):
    for words, said in (
        (["--no-compare", "--seeds", "2"], "--seeds 2: repeats a comparison with untaught controls; add --compare"),
        (["--seeds", "0"], "--seeds 0: must be 1 to 100"),
    ):
        done = antiphon("run", "demo", "--dry-run", *words)
        assert (done.code, done.out) == (2, "")
        assert said in done.err


def test_resuming_what_does_not_exist_is_a_mistake(request_of):
    with pytest.raises(ValueError, match="--resume 'demo-7': no such run"):
        compare(request_of(run_id="", resume="demo-7"), 2)
