"""`antiphon diff`: what differs among runs, and their scores with intervals, as a table, a page and JSON."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save, save_file

from tests.pages import Page
from tests.trained_runs import run_once
from workloads.evaluate.bootstrap import Pair, score_intervals, what_teaching_did
from workloads.evaluate.deliver import TEST_PREDICTIONS
from workloads.runtime.tensor_files import parse_safetensors

ALONE = ("edges=[]", "schedule={kind='mutual', burn_in=0, steps=2}", "models.cnn.optimizer.lr=0.02")
TURNS = ("schedule.burn_in=1", "schedule.period=1", "schedule.turns=2")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(tiny, storage):
    """A finished run, trained once for all tests of this file; returns its folder."""

    def train(run_id, *settings):
        return run_once(tiny("demo", *TURNS, *settings), storage, run_id)

    return train


@pytest.fixture
def first(trained):
    return trained("first")


@pytest.fixture
def alone(trained):
    """Without teachers, with another learning rate."""
    return trained("alone", *ALONE)


def predictions(run, model="cnn"):
    (file,) = (run / "models" / model).rglob(f"{TEST_PREDICTIONS}.safetensors")
    return parse_safetensors(file.read_bytes(), str(file))


def test_what_differs_is_listed_and_the_rest_is_counted(first, alone, antiphon):
    done = antiphon("diff", first, alone, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["runs"] == ["first", "alone"]
    assert found["recipe"]["models.cnn.optimizer.lr"] == ["0.005", "0.02"]
    assert found["recipe"]["schedule.kind"] == ["alternate", "mutual"]
    assert found["recipe"]["edges.0"] == ["cnn -> vit, weight 0.2", None]
    assert "edges.0.weight" not in found["recipe"], "one row for an edge that the other run does not have"
    assert "train.shard_size" not in found["recipe"]
    assert found["equal"] > 100
    facts = found["facts"]
    assert facts["status"] == ["done", "done"]
    assert facts["steps"] == [3, 2]
    assert facts["clips"][0] == {"train": 72, "val": 8, "test": 20}
    assert facts["data"][0] == facts["data"][1] != ""
    assert all(seconds > 0 for seconds in facts["seconds"])


def test_scores_have_the_intervals_of_their_stored_predictions(first, alone, antiphon):
    found = json.loads(antiphon("diff", first, alone, "--json").out)
    outcome = json.loads((first / "outcome.json").read_text())
    rows = {(row["model"], row["part"], row["metric"]): row["runs"] for row in found["scores"]}
    own = predictions(first)
    expected = score_intervals(own["logits_NC"], own["y_NC"], "multi")
    for metric in ("mAP", "log_loss"):
        row = rows["cnn", "test", metric][0]
        assert row == {"value": outcome["models"]["cnn"]["test"][metric], "interval": expected[metric]}
        assert row["interval"][0] < row["value"] < row["interval"][1] or metric == "mAP"  # resamples lack some tags
    assert rows["cnn", "val", "mAP"][0]["interval"] is None


def test_later_runs_are_compared_with_the_first_on_the_same_clips(first, alone, antiphon):
    found = json.loads(antiphon("diff", first, alone, "--json").out)
    pair = Pair(predictions(alone)["logits_NC"], predictions(first)["logits_NC"])
    expected = what_teaching_did([pair], predictions(first)["y_NC"], "multi")
    rows = {row["metric"]: row for row in found["compared"] if row["model"] == "cnn"}
    for metric, values in (("mAP", expected), ("log_loss", expected["log_loss"])):
        assert (rows[metric]["difference"], rows[metric]["interval"]) == (values["difference"], values["interval"])
    assert found["not_compared"] == {}


def test_runs_on_other_clips_are_said_to_be_and_unfinished_ones_are_shown(first, trained, antiphon, tmp_path):
    other = trained("other", "data.synthetic_seed=9")
    unfinished = shutil.copytree(first, tmp_path / "unfinished")
    (unfinished / "outcome.json").unlink()
    log = unfinished / "events.jsonl"
    kept = [line for line in log.read_text().splitlines() if json.loads(line)["kind"] not in ("result", "end")]
    log.write_text("\n".join(kept) + "\n")
    shutil.rmtree(unfinished / "models")
    found = json.loads(antiphon("diff", first, other, unfinished, "--json").out)
    assert found["facts"]["status"] == ["done", "done", "unfinished"]
    assert found["not_compared"]["other"] == "it was trained or tested on other clips, or with other labels"
    assert found["not_compared"]["unfinished"] == "no finished model has the name of one in first"
    assert [row["runs"][2] for row in found["scores"]] == [None] * len(found["scores"])


def test_a_model_whose_test_clips_give_no_score_is_not_said_to_have_other_clips(first, trained, antiphon, tmp_path):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in (first, trained("alone", *ALONE))]
    for run in runs:
        (file,) = (run / "models" / "vit").rglob(f"{TEST_PREDICTIONS}.safetensors")
        stored = predictions(run, "vit")
        save_file(stored | {"y_NC": torch.zeros_like(stored["y_NC"])}, file)
    found = json.loads(antiphon("diff", *runs, "--json").out)
    assert {row["model"] for row in found["compared"]} == {"cnn"}
    assert found["not_compared"]["alone"].startswith("vit: y of 20 clips: no tag has clips both with and without it")


def test_the_table_and_the_page_say_the_same(first, alone, antiphon, tmp_path):
    done = antiphon("diff", first, alone, "--out", tmp_path / "diff.html")
    assert done.code == 0, done.err
    assert "models.cnn.optimizer.lr" in done.out
    assert "alone against first, cnn: mAP" in done.out
    text = (tmp_path / "diff.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert len(text) < 50_000, "it needs no figures, so it carries no Plotly"
    rows = {row[0]: row[1:] for row in page.tables["recipe"]}
    assert rows["value"] == ["first", "alone"]
    assert rows["models.cnn.optimizer.lr"] == ["0.005", "0.02"]
    assert "cnn: test mAP" in {row[0] for row in page.tables["scores"]}
    assert "no difference shown" in page.texts["compared"] or "better" in page.texts["compared"]


def test_fewer_than_two_runs_and_what_is_none_are_refused(first, antiphon):
    for words, message in (
        ([first], "name two runs or more"),
        ([first, f"{first}/"], "is named twice"),
        ([first, f"{first.parent}/./{first.name}"], "is named twice"),
        ([first, f"file://{first}"], "is named twice"),
        ([first, "runs/nowhere"], "RUN 'runs/nowhere': no recipe.json there"),
    ):
        done = antiphon("diff", *words)
        assert (done.code, done.out) == (2, "")
        assert message in done.err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[1, 2]", "its content: input should be a valid dictionary"),
        ("{}", "data: field required"),
        ('{"data": {"labels": "multi", "test_fold": 0}, "models": 3}', "models: input should be a valid dictionary"),
        ("not JSON", "is not JSON"),
    ],
)
def test_a_recipe_that_is_none_is_named(first, tmp_path, antiphon, content, problem):
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.json").write_text(content)
    for words in (("diff", first, other), ("diff", other, first)):
        done = antiphon(*words)
        assert done.code == 2
        assert f"{other}/recipe.json: {problem}" in done.err


def test_a_run_without_its_test_predictions_is_listed_and_not_compared(first, alone, tmp_path, antiphon):
    bare = shutil.copytree(alone, tmp_path / "bare")
    for file in bare.rglob(f"{TEST_PREDICTIONS}.safetensors"):
        file.unlink()
    done = antiphon("diff", first, bare, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    rows = {(row["model"], row["part"], row["metric"]): row["runs"] for row in found["scores"]}
    there, gone = rows["cnn", "test", "mAP"]
    assert there["interval"] is not None
    assert gone["interval"] is None
    assert gone["value"] > 0
    assert found["compared"] == []
    assert f"{TEST_PREDICTIONS}.safetensors: is missing" in found["not_compared"]["bare"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("state.json", None, "state.json: is missing, so nobody knows what this tagger is"),
        ("state.json", b"{}", "state.json: kind: field required"),
        (f"{TEST_PREDICTIONS}.safetensors", b"", f"{TEST_PREDICTIONS}.safetensors: not a safetensors file"),
        (f"{TEST_PREDICTIONS}.safetensors", save({"y_NC": torch.ones(2, 3)}), "safetensors: holds no logits_NC"),
    ],
)
def test_a_damaged_model_is_not_compared_and_the_others_are(first, alone, tmp_path, antiphon, name, content, problem):
    damaged = shutil.copytree(alone, tmp_path / "damaged")
    (file,) = (damaged / "models" / "vit").rglob(name)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    done = antiphon("diff", first, damaged, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {row["model"] for row in found["compared"]} == {"cnn"}
    assert found["not_compared"]["damaged"].startswith("vit: ")
    assert problem in found["not_compared"]["damaged"]
    assert {row["model"] for row in found["scores"]} == {"cnn", "vit"}


def test_a_result_without_scores_is_named(first, alone, tmp_path, antiphon):
    other = shutil.copytree(alone, tmp_path / "other")
    log = other / "events.jsonl"
    log.write_text(log.read_text().replace('"test": {', '"tested": {'))
    done = antiphon("diff", first, other)
    assert done.code == 2
    assert f"{log}: models of its result: cnn.test: field required" in done.err


@pytest.mark.parametrize(("out", "problem"), [("none/page.html", "there is no folder none"), (".", "is a folder")])
def test_a_page_that_cannot_be_written_is_refused_first(first, alone, antiphon, tmp_path, monkeypatch, out, problem):
    monkeypatch.chdir(tmp_path)
    for words in (("diff", first, alone), ("report", first), ("cluster", "render", "example", "--to", "kuberay")):
        done = antiphon(*words, "--out", out)
        assert (done.code, done.out) == (2, "")
        assert f"--out '{out}': {problem}" in done.err


@pytest.mark.filterwarnings("error")
def test_a_score_that_no_resample_has_has_no_interval():
    """Every clip has the tag: there is no precision, in whatever sample of them; the log loss has an interval."""
    logits_NC, y_NC = torch.linspace(-1, 1, 8)[:, None], torch.ones(8, 1)
    found = score_intervals(logits_NC, y_NC, "multi")
    assert set(found) == {"log_loss"}
    loss = torch.nn.functional.softplus(-logits_NC).mean().item()
    assert found["log_loss"][0] < loss < found["log_loss"][1]
