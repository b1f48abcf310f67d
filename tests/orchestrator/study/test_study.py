"""`antiphon study --local` from its file to the table: results, resume, failures."""

import json
import os
import shutil
import signal

import pytest
import torch

from orchestrator.runs.pooled_comparison import compare_runs
from orchestrator.storage.retry import Unavailable
from orchestrator.study import member
from orchestrator.study.finished import COSTS
from orchestrator.study.plan import plan_study, without
from orchestrator.study.results import outcome_so_far
from orchestrator.study.store import StudyStore
from orchestrator.training import driver as training_driver
from tests.orchestrator.study.conftest import read_outcome
from tests.pages import Page
from workloads.config.study import Study
from workloads.evaluate import metrics
from workloads.evaluate.overlap import overlap_factor
from workloads.runtime.checkpoint_store import AlreadyDriven
from workloads.runtime.event_log import read_event_log
from workloads.runtime.tensor_files import parse_safetensors

CELLS = [(fold, seed) for fold in (1, 2) for seed in (0, 1)]


@pytest.fixture
def finished(study_file, antiphon, tmp_path_factory):
    """A finished study of eight runs, trained once for all tests of this file: command, outcome and its storage."""
    storage = tmp_path_factory.getbasetemp() / "finished-study"
    words, outcome = study_file(), storage / "tiny" / "outcome.json"
    words[words.index("--storage") + 1] = str(storage)
    if not outcome.exists():
        done = antiphon(*words, "--local", "--json")
        assert done.code == 0, done.err
        assert read_outcome(done.out) == json.loads(outcome.read_text())
    return words, json.loads(outcome.read_text()), storage


def runs_of(storage, method):
    return [str(storage / f"tiny-{method}-fold{fold}-seed{seed}") for fold, seed in CELLS]


def logits(storage, method, model, seed):
    """The published test predictions of a model, both folds as one test set."""
    found = []
    for fold in (1, 2):
        (file,) = (storage / f"tiny-{method}-fold{fold}-seed{seed}" / "models" / model).glob("*/test.safetensors")
        found.append(parse_safetensors(file.read_bytes(), str(file)))
    return [torch.cat([each[name] for each in found]) for name in ("logits_NC", "y_NC")]


def test_differences_are_those_of_compare_whose_intervals_are_widened_for_overlapping_training_sets(finished):
    _, outcome, storage = finished
    assert (outcome["status"], outcome["runs"], outcome["total"]) == ("done", 8, 8)
    assert list(outcome["methods"]) == ["plain", "mutual", "ensemble"]
    compared = compare_runs(runs_of(storage, "mutual"), runs_of(storage, "plain"))["compare"]
    (state,) = (storage / "tiny-plain-fold1-seed0" / "models" / "cnn").glob("*/state.json")
    clips = json.loads(state.read_text())["data"]["clips"]
    factor = overlap_factor(2, clips["train"], clips["test"])
    for student in ("cnn", "vit"):
        row, pooled = outcome["methods"]["mutual"]["students"][student], compared[student]
        assert (row["folds"], row["seeds"], row["clips"]) == ([1, 2], [0, 1], 40)
        assert row["overlap_factor"] == pooled["overlap_factor"] == pytest.approx(factor)
        for own, other in ((row, pooled), (row["log_loss"], pooled["log_loss"])):
            for key in ("taught", "untaught", "difference", "interval"):
                assert own[key] == pytest.approx(other[key])


def test_agreement_calibration_and_the_ensemble_are_those_of_the_published_logits(finished):
    _, outcome, storage = finished
    methods = outcome["methods"]
    for method in ("plain", "mutual"):
        pairs = [[logits(storage, method, model, seed)[0] for model in ("cnn", "vit")] for seed in (0, 1)]
        expected = sum(metrics.agreement(*pair, "multi") for pair in pairs) / 2
        assert methods[method]["agreement"] == pytest.approx(expected)
    scores = [metrics.score(*logits(storage, "plain", "vit", seed), "multi") for seed in (0, 1)]
    plain = methods["plain"]["students"]["vit"]
    assert plain["ece"] == pytest.approx(sum(score["ece"] for score in scores) / 2)
    assert plain["score"] == pytest.approx(sum(score["mAP"] for score in scores) / 2)
    together = []
    for seed in (0, 1):
        (cnn, y_NC), (vit, _) = (logits(storage, "plain", model, seed) for model in ("cnn", "vit"))
        mean_NC = (cnn.double().sigmoid() + vit.double().sigmoid()) / 2
        together.append(metrics.score(mean_NC.logit(), y_NC, "multi"))
    ensemble = methods["ensemble"]["students"]["vit"]
    assert ensemble["taught"] == pytest.approx(sum(score["mAP"] for score in together) / 2)
    assert ensemble["log_loss"]["untaught"] == pytest.approx(plain["log_loss"]["score"])


def test_the_cost_of_a_method_is_the_mean_of_what_its_runs_have_recorded(finished):
    _, outcome, storage = finished
    logs = [read_event_log(storage / f"tiny-mutual-fold{fold}-seed{seed}" / "events.jsonl") for fold, seed in CELLS]
    spent = [record for log in logs for record in log if record["kind"] == "cost"]
    assert [record["part"] for record in spent[:3]] == ["training", "training", "scoring"], "of each phase, and the end"
    for cost in COSTS:
        assert outcome["methods"]["mutual"][cost] == pytest.approx(sum(each[cost] for each in spent) / 4, abs=0.01)
    assert outcome["methods"]["mutual"]["cpu_seconds"] > 0
    assert outcome["methods"]["mutual"]["gpu_seconds"] == 0


def test_curves_count_a_model_s_own_steps(finished):
    _, outcome, _ = finished
    assert [step for step, _ in outcome["curves"]["vit"]["plain"]] == [2, 4]
    assert {*outcome["curves"]["vit"]} == {"plain", "mutual"}


def test_the_stopping_rule_is_printed_before_the_first_run_and_the_table_at_the_end(finished, antiphon):
    words, outcome, storage = finished
    written = {path: path.stat().st_mtime_ns for path in storage.glob("tiny-*/outcome.json")}
    again = antiphon(*words, "--local")
    assert again.code == 0
    assert "2 methods x 2 test folds (1, 2) x 2 seeds (0, 1) = 8 runs, 4 own steps of each model" in again.err
    assert "8 of 8 runs are done" in again.out
    assert "vit: mAP, and log loss in nats" in again.out
    assert "folds x" in again.out
    assert f"{outcome['methods']['mutual']['students']['vit']['untaught']:.3f}" in again.out
    assert {path: path.stat().st_mtime_ns for path in storage.glob("tiny-*/outcome.json")} == written, "none ran again"
    assert json.loads((storage / "tiny" / "outcome.json").read_text()) == outcome


def test_the_page_shows_what_the_outcome_says(finished, antiphon, tmp_path):
    _, outcome, storage = finished
    out = tmp_path / "page.html"
    assert antiphon("report", storage / "tiny", "--out", out).code == 0
    page, written = Page(out.read_text()), Page((storage / "tiny" / "report.html").read_text())
    assert page.tables == written.tables
    assert page.loads == []
    assert "Finished: 8 of 8 runs." in page.texts["status"]
    assert outcome["rule"] in page.texts["rule"]
    row = outcome["methods"]["mutual"]["students"]["vit"]
    low, high = row["interval"]
    value, difference = f"{row['taught']:.4f}", f"{row['difference']:+.4f}"
    shown = next(cells for cells in page.tables["scores-vit"] if cells[:2] == ["mutual", "mAP"])
    assert shown[2:6] == [value, f"{row['untaught']:.4f}", difference, f"{low:+.4f} to {high:+.4f}"]
    assert shown[-1] == "1, 2 x 0, 1"
    assert [cells[0] for cells in page.tables["methods"][1:]] == ["plain", "mutual", "ensemble"]
    points = {
        method: (x, x - minus, x + plus)
        for trace in page.figures["forest-vit-primary"]["data"]
        for method, x, minus, plus in zip(
            trace["y"], trace["x"], trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True
        )
    }
    assert points["mutual"] == pytest.approx((row["difference"], low, high))
    assert {*points} == {"mutual", "ensemble"}
    curve = outcome["curves"]["vit"]["mutual"]
    (drawn,) = [trace for trace in page.figures["curves-vit"]["data"] if trace["name"] == "mutual"]
    assert [*zip(drawn["x"], drawn["y"], strict=True)] == [tuple(point) for point in curve]


def test_a_study_keeps_the_plan_that_it_was_started_with(finished, antiphon):
    words, _, _ = finished
    done = antiphon(*words, "--local", "--set", "data.val_share=0.2")
    assert done.code == 2
    assert "study 'tiny': was started with other data.val_share of plain: 0.1, now 0.2" in done.err
    assert "start another with --study-id" in done.err


def test_a_study_that_is_stopped_reports_what_it_has_and_the_same_command_goes_on(
    study_file, antiphon, tmp_path, monkeypatch
):
    words = study_file("[settings.augment]", "gain_db = 0.0")
    file = tmp_path / "tiny.toml"
    file.write_text(file.read_text().replace("seeds = [0, 1]", "seeds = [5]"))
    begun, run = [], member.driver.run

    def stopped_at_the_third(request, **options):
        begun.append(request.run_id)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # before the third one has installed its own handlers
        return run(request, **options)

    monkeypatch.setattr(member.driver, "run", stopped_at_the_third)
    stopped = antiphon(*words, "--local", "--json")
    assert stopped.code == 75
    assert begun == [f"tiny-{method}-fold{fold}-seed5" for method, fold in (("plain", 1), ("mutual", 1), ("plain", 2))]
    outcome = read_outcome(stopped.out)
    assert (outcome["status"], outcome["runs"], outcome["total"]) == ("preempted", 2, 4)
    assert outcome["failed"] == {}, "a run that the user stops has not failed"
    assert outcome["methods"]["mutual"]["students"]["vit"]["folds"] == [1]
    assert "study: stopped; tiny-plain-fold2-seed5 is preempted" in stopped.err
    assert "stopped with 2 runs left; repeat the command to go on" in stopped.err
    page = Page((tmp_path / "runs" / "tiny" / "report.html").read_text())
    assert "Unfinished: 2 of 4 runs are done" in page.texts["status"]

    done = antiphon(*words, "--local", "--json")
    assert (done.code, begun[3:]) == (0, ["tiny-plain-fold2-seed5", "tiny-mutual-fold2-seed5"])
    assert read_outcome(done.out)["methods"]["mutual"]["students"]["vit"]["folds"] == [1, 2]


def test_a_stop_during_the_end_of_a_run_lets_it_end_and_stops_the_study(study_file, antiphon, tmp_path, monkeypatch):
    words = study_file()
    file = tmp_path / "tiny.toml"
    file.write_text(file.read_text().replace("seeds = [0, 1]", "seeds = [7]"))
    conclude = training_driver.conclude

    def stopped(location, **options):
        os.kill(os.getpid(), signal.SIGTERM)  # the run's own handlers are there, and nothing looks at them any more
        return conclude(location, **options)

    monkeypatch.setattr(training_driver, "conclude", stopped)
    done = antiphon(*words, "--local", "--json")
    outcome = read_outcome(done.out)
    assert (done.code, outcome["status"], outcome["runs"], outcome["failed"]) == (75, "preempted", 1, {})


def test_a_run_that_another_process_drives_or_that_is_preempted_alone_fails_and_the_others_go_on(
    study_file, antiphon, tmp_path, monkeypatch
):
    words = study_file()
    file = tmp_path / "tiny.toml"
    file.write_text(file.read_text().replace("seeds = [0, 1]", "seeds = [8]"))
    run, errors = (
        member.driver.run,
        {"mutual-fold1": AlreadyDriven("is driven"), "mutual-fold2": Unavailable("is gone")},
    )

    def unlucky(request, **options):
        for name, error in errors.items():
            if name in request.run_id:
                raise error
        return run(request, **options)

    monkeypatch.setattr(member.driver, "run", unlucky)
    done = antiphon(*words, "--local", "--json")
    outcome = read_outcome(done.out)
    assert (done.code, outcome["status"], outcome["runs"]) == (1, "failed", 2)
    assert outcome["failed"] == {"tiny-mutual-fold1-seed8": "is driven", "tiny-mutual-fold2-seed8": "is gone"}


def test_a_method_that_was_left_out_stays_so_when_its_store_has_appeared(tmp_path):
    plan = plan_study(Study(name="s", recipe="demo", folds=(1,), seeds=(0,), steps=4, standard=("mutual", "gated")))
    began, store = without(plan, {"gated": "no store there"}), StudyStore(str(tmp_path / "s"))
    store.open(began, command="", created=0.0)
    assert store.open(plan, command="", created=1.0) == began
    with pytest.raises(ValueError, match="was started with other methods: plain, mutual, now plain"):
        store.open(without(plan, {"mutual": "gone"}), command="", created=1.0)


def test_a_method_of_other_clips_says_so_in_its_row(finished, tmp_path):
    _, _, storage = finished
    shutil.copytree(storage, tmp_path / "runs")
    for file in (tmp_path / "runs").glob("tiny-mutual-fold2-seed1/models/vit/*/state.json"):
        state = json.loads(file.read_text())
        state["data"]["fingerprint"] = "of other clips"
        file.write_text(json.dumps(state))
    outcome = outcome_so_far(str(tmp_path / "runs" / "tiny"))
    row = outcome["methods"]["mutual"]
    assert row["not_compared"] == "its runs of vit and those of plain were not all trained on the same clips"
    assert row["students"] == {}
    assert {*outcome["methods"]["ensemble"]["students"]} == {"cnn", "vit"}


def test_a_study_whose_stores_or_data_are_gone_still_shows_what_is_done(finished, tmp_path, antiphon, monkeypatch):
    """The same command again: what cannot be trained any more need not be, where nothing is left."""
    words, outcome, storage = finished
    here = [str(tmp_path / "runs") if word == str(storage) else word for word in words]
    shutil.copytree(storage, tmp_path / "runs")

    def gone(recipe):
        raise ValueError("store 'outputs': there is no description.json")

    monkeypatch.setattr("orchestrator.study.request.check_recipe_data", gone)
    done = antiphon(*here, "--local", "--json")
    assert done.code == 0, done.err
    assert read_outcome(done.out)["methods"] == outcome["methods"]
    shutil.rmtree(tmp_path / "runs" / "tiny-plain-fold2-seed1")
    done = antiphon(*here, "--local")
    assert done.code == 2
    assert "store 'outputs': there is no description.json" in done.err


def test_a_run_that_fails_is_named_and_the_others_go_on(study_file, antiphon, tmp_path):
    wild = ("[methods.wild]", 'like = "mutual"', "[methods.wild.settings.models.vit.optimizer]", "lr = 1e30")
    stored = ("[[methods.stored.settings.edges]]", 'teacher = "store:nowhere"', 'student = "vit"')
    words = study_file(*wild, "clip_norm = 0.0", *stored)
    file = tmp_path / "tiny.toml"
    file.write_text(file.read_text().replace("seeds = [0, 1]", "seeds = [6]").replace("folds = [1, 2]", "folds = [1]"))
    done = antiphon(*words, "--local", "--json")
    outcome = read_outcome(done.out)
    assert (done.code, outcome["status"]) == (1, "failed")
    assert [*outcome["failed"]] == ["tiny-wild-fold1-seed6"]
    assert outcome["methods"]["wild"]["students"] == {}
    assert {*outcome["methods"]["mutual"]["students"]} == {"cnn", "vit"}
    assert "nowhere" in outcome["left_out"]["stored"]
    assert "left out: stored: " in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--local", "--slots", "2"), "--slots: --local trains one run after another without Ray"),
        (("--address", "h:1", "--tracking", "sqlite:///m.db"), "--tracking sqlite:///m.db: on a cluster every run"),
        (("--local", "--set", "data.format=esc50"), "format esc50 needs the data set's folder"),
        (("--local", "--set", "data.train_folds=[2,3]"), "train_folds = (2, 3): has the test fold 2"),
    ],
)
def test_mistakes(study_file, antiphon, options, message, tmp_path):
    done = antiphon(*study_file(), *options)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "runs" / "tiny").exists()


def test_a_method_that_needs_another_place_on_a_cluster_is_refused(study_file, antiphon):
    done = antiphon(*study_file("[methods.wide]", 'like = "mutual"', "settings.train.threads = 2"), "--local")
    assert done.code == 2
    assert "methods.wide: a run of it takes 2 CPU, and one of plain 1 CPU; leave train.device" in done.err
