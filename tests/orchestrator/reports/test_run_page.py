"""The report shows what the event log holds, needs no network, and also covers runs that failed."""

import html
import json
import math
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.reports.run_figures import MIN_LABELLED_SHARE
from orchestrator.reports.run_history import RunHistory
from orchestrator.reports.run_page import write_report
from orchestrator.reports.write import rewrite_report
from tests.pages import Page
from workloads.evaluate.chance import chance_precision

TAGS = ["dog", "rain", "<b>sea</b> & waves", "crying baby", "clock tick"]
CLIPS_PER_TAG = {"train": [96, 60, 60, 12, 12], "val": [24, 12, 12, 6, 6], "test": [40, 20, 20, 20, 0]}
BURN_IN, PERIOD = 40, 30
EDGES = {
    ("vit", "cnn"): {"weight": 0.2, "temperature": 1.0},
    ("cnn", "vit"): {"weight": 0.5, "temperature": 2.0},
}
Record = dict[str, Any]


def recipe(labels: str) -> Record:
    models = {"cnn": {"arch": {"family": "mn", "width": 0.3}}, "vit": {"arch": {"family": "vit", "dim": 96}}}
    edges = [{"teacher": teacher, "student": student, **more} for (teacher, student), more in EDGES.items()]
    about = "CNN & Transformer <i>alternate</i>"
    return {"name": "demo", "about": about, "data": {"labels": labels}, "models": models, "edges": edges}


def run_records(*, labels: str = "single", turns: int = 8) -> list[Record]:
    """The records of a whole alternating run, as the training loop writes them; losses fall, scores rise, seed 0."""
    numbers = random.Random(0)
    tags = {"git_commit": "0123abcd", "schedule": "alternate", "command": 'antiphon run demo --set "a.b=<x>"'}
    tags |= {"options": "--storage /runs --local", "tracking": "postgresql://u:***@h/db"}
    start = {"run_id": "demo-1", "experiment": "antiphon", "name": "demo", "params": {}, "tags": tags}
    records: list[Record] = [{"kind": "run", **start}, {"kind": "start", "step": 0, "attempt": 1, "damaged": []}]
    broken = [{"clip_id": "17", "path": "audio/<script>alert(1)</script>.wav", "reason": "no samples"}]
    clips = {"train": 240, "val": 60, "test": 100}
    data = {"fingerprint": "5eed" * 16, "tags": TAGS, "labels": labels, "clips": clips, "quarantined": broken}
    data |= {"rate": 16_000, "clip_seconds": 5.0, "clips_per_tag": CLIPS_PER_TAG, "known_per_tag": None}
    data["durations"] = {"min": 0.5, "median": 5.0, "max": 62.25, "total": 3600.0, "shorter": 7, "longer": 1}
    data["folds"] = {"1": {"train": 0, "val": 0, "test": 100}, "2": {"train": 240, "val": 60, "test": 0}}
    records.append({"kind": "data", **data})
    plan = [(BURN_IN, ["cnn", "vit"], [])]
    plan += [(PERIOD, [student], [edge]) for edge in list(EDGES)[::-1] * turns for student in [edge[1]]][:turns]
    step = 0
    for index, (steps, trains, edges) in enumerate(plan):
        records.append(_phase(index, plan, step, steps, trains, edges))
        for at in range(step + 10, step + steps + 1, 10):
            records.append({"kind": "metrics", "step": at, "values": _values(numbers, at, trains, edges)})
            if at % 50 == 0:
                scores = {f"{model}/val/{_metric(labels)}": 1 - math.exp(-at / 150) * 0.8 for model in ("cnn", "vit")}
                scores |= {f"{model}/val/log_loss": math.exp(-at / 200) * 1.5 for model in ("cnn", "vit")}
                records.append({"kind": "metrics", "step": at, "values": scores})
        step += steps
        records.append({"kind": "checkpoint", "step": step, "name": f"step-{step:08d}", "seconds": 0.2})
    records.append({"kind": "result", "steps": step, "models": {m: _row(m, labels, numbers) for m in ("cnn", "vit")}})
    records.append({"kind": "end", "status": "done", "error": ""})
    return [{"t": 1_795_000_000_000 + 700 * number, **record} for number, record in enumerate(records)]


def _phase(index: int, plan: list[Any], step: int, steps: int, trains: list[str], edges: list[Any]) -> Record:
    usual = {"tau_mode": "teacher_only", "source": "live", "view": "same", "gate": "always", "shuffled": False}
    full = [{"teacher": pair[0], "student": pair[1], **EDGES[pair], **usual} for pair in edges]
    numbers = {"index": index, "of": len(plan), "steps": steps, "total": sum(phase[0] for phase in plan)}
    return {"kind": "phase", "step": step, **numbers, "trains": trains, "edges": full, "snapshots": {}}


def _values(numbers: random.Random, at: int, trains: list[str], edges: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for model in trains:
        loss = 1.6 * math.exp(-at / 180) + numbers.uniform(0, 0.1)
        values |= {f"{model}/loss": loss, f"{model}/label_loss": loss * 0.9, f"{model}/own_step": at}
    for teacher, student in edges:
        key = f"{teacher}-to-{student}"
        values |= {f"{key}/kd_loss": 1.4 * math.exp(-at / 200), f"{key}/weight": EDGES[teacher, student]["weight"]}
        values |= {f"{key}/teacher_entropy": 1.2 * math.exp(-at / 400), f"{key}/agreement": 1 - math.exp(-at / 160)}
    return values


def _metric(labels: str) -> str:
    return "accuracy" if labels == "single" else "mAP"


def _row(model: str, labels: str, numbers: random.Random) -> Record:
    size = len(TAGS)
    score = {"cnn": 0.83125, "vit": 0.77}[model]
    row: Record = {"params": 718378, "steps_taught": 120, "steps_learned": 1160}
    row |= {"val": {_metric(labels): score + 0.01}, "test": {_metric(labels): score, "log_loss": 0.6123}}
    row |= {"checkpoint": f"/runs/demo-1/models/{model}", "weights_sha256": "ab" * 32}
    row["per_tag"] = {tag: round(numbers.uniform(0.5, 1.0), 3) for tag in TAGS}
    if labels == "single":
        row["confusion"] = [[16 if a == b else numbers.randint(0, 2) for b in range(size)] for a in range(size)]
    else:
        row["cooccurrence"] = [[0.8 if a == b else numbers.uniform(0, 0.3) for b in range(size)] for a in range(size)]
    return row


def _page(records: list[Record], folder: Path, *, labels: str = "single", uri: str = "/runs/demo-1") -> Page:
    out = folder / "report.html"
    write_report(records, recipe(labels), run_id="demo-1", uri=uri, out=out)
    assert list(folder.iterdir()) == [out]
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return _page(run_records(), tmp_path_factory.mktemp("report"))


def test_the_model_table_has_the_event_logs_numbers(page: Page) -> None:
    head, cnn, vit, _ = page.tables["models"]
    assert head[4:6] == ["validation accuracy", "test accuracy"]
    expected = [
        "cnn",
        "mn",
        "1,160",
        "120",
        "0.8413",
        "0.8313",
        "log_loss 0.6123",
        "718,378",
        "/runs/demo-1/models/cnn",
    ]
    expected[5] = f"{0.83125:.4f}"
    expected[4] = f"{0.84125:.4f}"
    assert cnn == expected
    assert vit[4:6] == ["0.7800", "0.7700"]
    assert page.texts["status"].strip() == "Finished after step 280 of 280."


def compared_run() -> tuple[list[Record], Record]:
    """Records and recipe of a run in which a control trains beside the vit from step 140 on."""
    compared = recipe("single")
    compared["models"]["alone"] = {"arch": {"family": "vit", "dim": 96}, "control_of": "vit"}
    *records, result, end = run_records()
    result["models"]["alone"] = result["models"]["vit"] | {"test": {"accuracy": 0.7, "log_loss": 0.8}}
    for step in (150, 200):
        values = {"alone/loss": 1.1, "alone/val/accuracy": 0.6, "alone/val/log_loss": 0.9}
        records.append({"kind": "metrics", "t": end["t"], "step": step, "values": values})
    accuracy = {"taught": 0.77, "untaught": 0.7, "difference": 0.07, "interval": [0.01, 0.12]}
    log_loss = {"taught": 0.61, "untaught": 0.8, "difference": 0.19, "interval": [-0.02, 0.4]}
    models = {"vit": accuracy | {"metric": "accuracy", "seeds": 3, "clips": 100, "log_loss": log_loss}}
    comparison = {"kind": "comparison", "t": end["t"], "step": result["steps"], "models": models}
    return [*records, result, comparison, end], compared


def test_what_teaching_did_is_on_top_with_its_interval(tmp_path: Path) -> None:
    records, compared = compared_run()
    out = tmp_path / "report.html"
    write_report(records, compared, run_id="demo-1", uri="/runs/demo-1", out=out)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.texts["teaching"] == (
        "What teaching did, on 100 test clips and 3 seeds: vit: better in accuracy (+0.0700), no difference shown in "
        "log loss (+0.1900)."
    )
    assert page.tables["comparison"][1:] == [
        ["vit", "accuracy", "0.7700", "0.7000", "+0.0700", "+0.0100 to +0.1200"],
        ["vit", "log loss", "0.6100", "0.8000", "+0.1900", "-0.0200 to +0.4000"],
    ]
    assert [row[0] for row in page.tables["models"][1:]] == ["cnn", "vit", "alone", "without a model"]
    names = [trace["name"] for trace in page.figures["curves-vit"]["data"]]
    untaught = ["training loss, untaught", "validation log loss, untaught", "accuracy, untaught"]
    assert [name for name in names if "untaught" in name] == untaught
    assert "curves-alone" not in page.figures


def test_a_score_that_is_not_compared_is_named_with_the_reason(tmp_path: Path) -> None:
    records, compared = compared_run()
    records[-2]["models"]["vit"]["not_compared"] = {"frame_mAP": "its <frames> are not stored"}
    out = tmp_path / "report.html"
    write_report(records, compared, run_id="demo-1", uri="/runs/demo-1", out=out)
    found = Page(out.read_text(encoding="utf-8"))
    assert found.texts["not-compared"].strip() == "vit: frame_mAP is not compared: its <frames> are not stored."


def test_a_run_without_a_comparison_says_how_to_get_one(page: Page) -> None:
    assert "teaching" not in page.texts
    assert "--compare" in page.texts["reading"]


def test_the_page_loads_nothing(page: Page) -> None:
    assert page.loads == []
    assert page.tags.count("meta") == 4  # one of them forbids the browser to load anything
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)


def test_what_came_from_outside_is_text(page: Page) -> None:
    assert page.tables["quarantined"][1] == ["17", "audio/<script>alert(1)</script>.wav", "no samples"]
    assert page.texts["typed"] == 'antiphon run demo --set "a.b=<x>"'
    assert page.texts["what_to_set"].startswith("First set MLFLOW_TRACKING_URI to postgresql://u:***@h/db with")
    assert json.loads(page.texts["recipe"]) == recipe("single")
    assert page.figures["tags"]["data"][0]["y"].count("&lt;b&gt;sea&lt;/b&gt; &amp; waves") == 1
    assert "i" not in page.tags  # the recipe's own markup


def test_interruptions_and_non_finite_steps_are_listed_where_there_were_any(page: Page, tmp_path: Path) -> None:
    assert "attempts" not in page.tables
    assert "non-finite" not in page.tables
    records = run_records()
    again = {"kind": "start", "step": 100, "attempt": 3, "damaged": ["step-00000110-attempt-1: <vit> differs"]}
    bad = {"kind": "bad", "step": 120, "models": ["vit"], "policy": "skip", "clip_ids": ["1-2", "3-4"]}
    after = [{"t": records[-1]["t"], **record} for record in (again, bad)]
    shown = _page([*records[:-2], *after, *records[-2:]], tmp_path).tables
    assert shown["attempts"][1:] == [["1", "0", "none"], ["3", "100", "step-00000110-attempt-1: <vit> differs"]]
    assert shown["non-finite"][1:] == [["120", "vit", "step skipped", "1-2, 3-4"]]


def test_data_is_counted(page: Page) -> None:
    rows = dict(page.tables["data"])
    assert rows["train clips"] == "240"
    assert rows["clip length"] == "5 s"
    assert rows["length of the files"] == (
        "0.5 s to 62.25 s, median 5 s; 7 shorter ones padded, 1 longer one cut in training"
    )
    assert rows["sample rate"] == "16,000 Hz"
    assert rows["fingerprint"] == "5eed" * 16
    assert page.tables["folds"][1:] == [
        ["1", "0", "0", "100", "test"],
        ["2", "240", "60", "0", "training, validation"],
    ]
    train, val, test = page.figures["balance"]["data"]
    assert [trace["name"] for trace in (train, val, test)] == ["training", "validation", "test"]
    assert [html.unescape(tag) for tag in train["y"]] == TAGS
    assert [trace["x"] for trace in (train, val, test)] == list(CLIPS_PER_TAG.values())
    assert page.texts["balance-text"].startswith(
        "The commonest tag, dog, is on 96 training clips, the rarest, crying baby, on 12."
    )


def test_clips_without_labels_are_counted(tmp_path: Path) -> None:
    records = run_records()
    next(record for record in records if record["kind"] == "data").update(unlabelled=216, left_out=3)
    rows = dict(_page(records, tmp_path).tables["data"])
    assert rows["train clips"] == "240, 24 of them labelled"
    assert rows["val clips"] == "60"
    assert rows["unlabelled clips left out"] == "3"


def test_stores_are_described_with_their_teachers_and_what_was_compared(tmp_path: Path) -> None:
    records = run_records()
    own = {"edge": "ced", "store": "s3://b/ced", "column": "outputs", "clips": 2000, "views": 10, "without_rows": 3}
    own |= {"teachers": {"cnn": "ab" * 32, "vit": "cd" * 32}, "waveforms_compared": 8, "not_compared": ""}
    other = {"edge": "far", "store": "/far", "column": "outputs", "clips": 5, "views": 1, "without_rows": 0}
    other |= {"teachers": {"ast": "ef" * 32}, "waveforms_compared": 0, "not_compared": "the <rates> differ"}
    older = {"edge": "old", "store": "/old", "column": "outputs", "clips": 5, "views": 1, "without_rows": 0}
    next(record for record in records if record["kind"] == "data").update(stores=[own, other, older])
    page = _page(records, tmp_path)
    rows = dict(page.tables["data"])
    assert rows["ced"] == (
        "column outputs of s3://b/ced: 10 views of 2,000 clips, outputs of cnn abababababab, vit cdcdcdcdcdcd; the "
        "student gets the waveforms that its teachers got, compared bit for bit for 8 sampled clips"
    )
    assert rows["far"].endswith(
        "outputs of ast efefefefefef; the student's waveforms were not compared with its teachers': the <rates> differ"
    )
    assert rows["old"] == "column outputs of /old: 1 view of 5 clips", "a record of an older version"
    assert rows["train clips without a row of ced"] == "3, taught by their labels"
    assert "train clips without a row of far" not in rows
    assert "what a store taught was in its students' own steps" in page.texts["reading"]


def test_scores_stand_beside_those_without_a_model(page: Page, tmp_path: Path) -> None:
    row = page.tables["models"][-1]
    assert (row[0], row[4:6]) == ("without a model", ["0.4000", "0.4000"])
    precision = sum(chance_precision(have, 100) for have in (40, 20, 20, 20)) / 4
    assert row[6] == f"log_loss {-(0.4 * math.log(0.4) + 0.6 * math.log(0.2)):.4g}, mAP {precision:.4g}"
    line = page.figures["curves-cnn"]["layout"]["shapes"][-1]
    assert (line["yref"], line["y0"], line["y1"]) == ("y2", 0.4, 0.4)
    assert [name for name, _ in page.tables["meanings"]] == ["accuracy", "log_loss"]
    multi = _page(run_records(labels="multi"), tmp_path, labels="multi")
    assert multi.tables["models"][-1][5] == f"{precision:.4f}"
    (marks,) = (trace for trace in multi.figures["tags"]["data"] if trace["name"] == "without a model")
    by_tag = dict(zip(map(html.unescape, marks["y"]), marks["x"], strict=True))
    assert by_tag["dog"] == chance_precision(40, 100)
    assert by_tag["clock tick"] is None  # on no test clip


def test_a_record_without_counts_shows_no_chance_levels(tmp_path: Path) -> None:
    records = run_records()
    data = next(record for record in records if record["kind"] == "data")
    for name in ("clips_per_tag", "known_per_tag", "folds", "durations", "rate", "clip_seconds"):
        del data[name]
    page = _page(records, tmp_path)
    assert [row[0] for row in page.tables["models"]] == ["model", "cnn", "vit"]
    assert "balance" not in page.figures


def test_scores_by_tag_are_named_after_the_part_that_was_scored(tmp_path: Path) -> None:
    """With train.score_test = false they are of the validation clips."""
    records = run_records(labels="multi")
    for row in records[-2]["models"].values():
        row["test"] = {}
    out = tmp_path / "report.html"
    write_report(records, recipe("multi"), run_id="demo-1", uri="/runs/demo-1", out=out)
    text = out.read_text(encoding="utf-8")
    assert ">Validation scores by tag</h2>" in text
    assert "Test scores by tag" not in text


def run_in_shell(command: str, folder: Path, program: Path) -> str:
    """What a shell prints for pasted lines in another folder, where `antiphon` is this program."""
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def printing_program(tmp_path: Path) -> Path:
    """An `antiphon` that prints its arguments, one a line."""
    program = tmp_path / "bin" / "antiphon"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    return program


def test_the_command_of_a_run_in_a_folder_takes_its_recipe(tmp_path: Path, printing_program: Path) -> None:
    folder = tmp_path / "it's my runs" / "demo-1"
    (tmp_path / "report").mkdir()
    page = _page(run_records(), tmp_path / "report", uri=str(folder))
    printed = run_in_shell(page.texts["commands"], tmp_path, printing_program)
    assert printed.splitlines() == ["run", f"{folder}/recipe.json", "--storage", "/runs", "--local"]


def test_the_command_of_a_run_on_an_object_store_writes_its_recipe_first(
    tmp_path: Path, printing_program: Path
) -> None:
    (tmp_path / "report").mkdir()
    page = _page(run_records(), tmp_path / "report", uri="s3://bucket/demo-1")
    printed = run_in_shell(page.texts["commands"], tmp_path, printing_program)
    assert printed.splitlines()[:2] == ["run", "demo-1.recipe.json"]
    assert json.loads((tmp_path / "demo-1.recipe.json").read_text()) == recipe("single")


def test_curves_are_the_event_logs_with_gaps_where_the_model_is_not_training(page: Page) -> None:
    history = RunHistory(run_records(), recipe("single"))
    loss, label_loss, kd_loss, score, val_loss = page.figures["curves-vit"]["data"]
    names = [trace["name"] for trace in (loss, label_loss, kd_loss, score, val_loss)]
    assert names == ["training loss", "label loss", "distillation loss, cnn", "accuracy", "validation log loss"]
    drawn = [(x, y) for x, y in zip(loss["x"], loss["y"], strict=True) if y is not None]
    assert drawn == history.curves["vit/loss"]
    assert list(zip(score["x"], score["y"], strict=True)) == history.curves["vit/val/accuracy"]
    # burn-in and the first turn (to step 70) join; then the cnn trains until 100
    assert loss["x"][5:9] == [60, 70, 110, 110]
    assert loss["y"][7] is None
    assert loss["y"].count(None) == 3


def test_the_background_shows_the_roles(page: Page) -> None:
    shapes = page.figures["curves-cnn"]["layout"]["shapes"]
    assert [(shape["x0"], shape["x1"]) for shape in shapes[:3]] == [(0, 40), (40, 70), (70, 100)]
    named = [note["text"] for note in page.figures["curves-cnn"]["layout"]["annotations"]]
    assert named == ["training"] + ["teaching", "training"] * 4 + ["accuracy without a model: 0.400"]
    blocks = {trace["name"]: trace for trace in page.figures["schedule"]["data"]}
    assert sorted(zip(blocks["teaching"]["y"], blocks["teaching"]["base"], strict=True))[:2] == [
        ("cnn", 40),
        ("cnn", 100),
    ]


def test_every_edge_has_its_four_curves(page: Page) -> None:
    traces = page.figures["edges"]["data"]
    assert len(traces) == 8
    weights = {trace["name"]: {y for y in trace["y"] if y is not None} for trace in traces if trace["xaxis"] == "x2"}
    assert weights == {"vit → cnn": {0.2}, "cnn → vit": {0.5}}


def test_edges_of_profiles_have_no_panels_of_what_only_logits_have(tmp_path: Path, page: Page) -> None:
    """Neither teacher entropy nor agreement; nor a word about them."""
    of_logits = ("/teacher_entropy", "/agreement")
    records = run_records()
    for record in records:
        if record["kind"] == "metrics":
            record["values"] = {key: value for key, value in record["values"].items() if not key.endswith(of_logits)}
    found = _page(records, tmp_path)
    traces = found.figures["edges"]["data"]
    assert {trace["xaxis"] for trace in traces} == {"x", "x2"}
    assert len(traces) == 4
    titles = [note["text"] for note in found.figures["edges"]["layout"]["annotations"]]
    assert titles == ["distillation loss (nats)", "effective weight (share of the loss)"]
    assert len(page.figures["edges"]["layout"]["annotations"]) == 4
    for words in ("Teacher entropy is", "Agreement is"):
        assert words in page.texts["edges-text"]
        assert words not in found.texts["edges-text"]


def test_profiles_have_a_panel_and_even_ones_a_sentence(tmp_path: Path, page: Page) -> None:
    """A run whose edges carry profiles alone; the page of logits has neither."""
    assert "flatness" not in page.figures
    of = {
        f"{one}-to-{other}-temporal": (level, carries)
        for one, other, level, carries in (("vit", "cnn", 0.99, "temporal"), ("cnn", "vit", 0.4, "temporal"))
    }
    records = [record for record in run_records() if record["kind"] not in ("phase", "result", "end")]
    for record in records:
        if record["kind"] == "metrics":
            record["values"] |= {f"{key}/flatness": level + record["step"] / 1e6 for key, (level, _) in of.items()}
    edges = [{"teacher": key.split("-")[0], "student": key.split("-")[2], "carries": "temporal"} for key in of]
    (tmp_path / "page").mkdir()
    out = tmp_path / "page" / "report.html"
    write_report(records, recipe("single") | {"edges": edges}, run_id="r", uri="r", out=out)
    found = Page(out.read_text(encoding="utf-8"))
    traces = found.figures["flatness"]["data"]
    steps = [record["step"] for record in records if record["kind"] == "metrics"]
    assert {trace["name"]: trace["y"][0] for trace in traces} == {
        "vit → cnn-temporal": pytest.approx(0.99 + steps[0] / 1e6),
        "cnn → vit-temporal": pytest.approx(0.4 + steps[0] / 1e6),
    }
    text = " ".join(found.texts["even-profiles"].split())
    assert "vit-to-cnn-temporal: the profiles have a mean flatness of 0.990 over the last 10 records" in text
    assert "cnn-to-vit-temporal: the profiles" not in text


def test_tags_and_confusion_are_the_results(page: Page) -> None:
    result = RunHistory(run_records(), recipe("single")).results
    for trace in page.figures["tags"]["data"]:
        assert dict(zip(map(html.unescape, trace["y"]), trace["x"], strict=True)) == result[trace["name"]]["per_tag"]
    heat = page.figures["matrix-vit"]["data"][0]
    assert heat["text"] == [[str(count) for count in row] for row in result["vit"]["confusion"]]
    assert heat["x"] == heat["y"]
    assert [html.unescape(tag) for tag in heat["x"]] == TAGS
    assert heat["z"][0][0] == pytest.approx(16 / sum(result["vit"]["confusion"][0]))


def test_tags_that_look_like_numbers_are_drawn_as_names(page: Page) -> None:
    """Plotly would draw "7" at seven of a continuous axis."""
    assert page.figures["tags"]["layout"]["yaxis"]["type"] == "category"
    matrix = page.figures["matrix-vit"]["layout"]
    assert (matrix["xaxis"]["type"], matrix["yaxis"]["type"]) == ("category", "category")


def test_clips_whose_files_were_mended_are_listed(tmp_path: Path) -> None:
    records = run_records()
    data = next(record for record in records if record["kind"] == "data")
    data["mended"] = [
        {"clip_id": "9", "path": "audio/9.wav", "notes": ["goes beyond full scale (peak 4): scaled down"]}
    ]
    rows = _page(records, tmp_path).tables["mended"]
    assert rows[1] == ["9", "audio/9.wav", "goes beyond full scale (peak 4): scaled down"]


def test_clips_that_were_replaced_are_listed_once(page: Page, tmp_path: Path) -> None:
    assert "replaced" not in page.tables
    records = run_records()
    lost = {"kind": "replaced", "t": records[-1]["t"], "step": 7, "clip_id": "9", "reason": "its <bytes>", "by": "4"}
    again = lost | {"step": 8}
    rows = _page([*records[:-2], lost, again, lost | {"clip_id": "3"}, *records[-2:]], tmp_path).tables["replaced"]
    assert rows[1:] == [["9", "its <bytes>", "7", "4"], ["3", "its <bytes>", "7", "4"]]


def test_warnings_about_the_data_are_shown(tmp_path: Path) -> None:
    records = run_records()
    next(record for record in records if record["kind"] == "data")["warnings"] = ["column <fold>: there is none"]
    assert _page(records, tmp_path).texts["warnings"].strip() == "column <fold>: there is none"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("data", {"clips": ...}, "clips: field required"),
        ("data", {"clips": {"train": 1}}, "clips.val: field required"),
        ("data", {"durations": {"min": 1}}, "durations.median: field required"),
        ("data", {"quarantined": ["17"]}, "quarantined.0: input should be a valid dictionary"),
        ("data", {"clips_per_tag": CLIPS_PER_TAG | {"val": [1]}}, f"clips_per_tag.val: 1 counts for {len(TAGS)} tags"),
        ("checkpoint", {"step": ...}, "step: field required"),
        ("metrics", {"step": "7"}, "step: input should be a valid integer"),
        ("bad", {"step": 3, "models": ["cnn"], "policy": "skip"}, "clip_ids: field required"),
        ("replaced", {"step": 3, "clip_id": "9", "by": "4"}, "reason: field required"),
        ("machine", {"t": -1}, "t: input should be greater than or equal to 0"),
        ("run", {"t": 10**20}, "t: input should be less than"),
        (
            "result",
            {"models": {"cnn": _row("cnn", "single", random.Random(0)) | {"per_tag": None}}},
            "per_tag: input sh",
        ),
    ],
)
def test_a_record_that_no_run_writes_is_named(tmp_path: Path, kind: str, fields: Record, message: str) -> None:
    records = run_records()
    known = next((record for record in records if record["kind"] == kind), {"kind": kind, "t": records[-1]["t"]})
    damaged = {key: value for key, value in (known | fields).items() if value is not ...}
    with pytest.raises(ValueError, match=rf"^\S+/events\.jsonl.*: (models\.cnn\.)?{message}"):
        _rewritten([*records, damaged], tmp_path)


@pytest.mark.parametrize("command", ["", "  ", "antiphon's", "'"])
def test_a_command_that_no_shell_takes_is_repeated_with_antiphon(tmp_path: Path, command: str) -> None:
    first, *others = run_records()
    page = _rewritten([first | {"tags": {"command": command}}, *others], tmp_path)
    assert page.texts["commands"] == f"antiphon run {tmp_path / 'demo-1' / 'recipe.json'}"


def _rewritten(records: list[Record], folder: Path) -> Page:
    """The page that `antiphon report` writes of a run's folder with these records."""
    run = folder / "demo-1"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(recipe("single") | {"edges": []}))
    (run / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Page(Path(rewrite_report(str(run), str(folder / "report.html"))).read_text(encoding="utf-8"))


def test_tags_on_no_test_clip_have_an_empty_row(tmp_path: Path) -> None:
    *records, result, end = run_records(labels="multi")
    matrix = result["models"]["cnn"]["cooccurrence"]
    matrix[0] = [None] * len(TAGS)
    page = _page([*records, result, end], tmp_path, labels="multi")
    text = page.figures["matrix-cnn"]["data"][0]["text"]
    assert text[0] == [""] * len(TAGS)
    assert text[1] == [f"{value:.2f}" for value in matrix[1]]


def test_several_labels_show_cooccurrence_and_map(tmp_path: Path) -> None:
    records = run_records(labels="multi")
    records[-2]["models"]["cnn"]["cooccurrence"][1] = [math.nan] * len(TAGS)  # a tag without test clips
    del records[-2]["models"]["cnn"]["per_tag"]["rain"]
    page = _page(records, tmp_path, labels="multi")
    assert page.tables["models"][0][5] == "test mAP"
    heat = page.figures["matrix-cnn"]["data"][0]
    assert heat["z"][0] == records[-2]["models"]["cnn"]["cooccurrence"][0]
    assert heat["z"][1] == [None] * len(TAGS)
    (bars,) = (trace for trace in page.figures["tags"]["data"] if trace["name"] == "cnn")
    assert bars["x"][bars["y"].index("rain")] is None


def test_many_turns_are_shaded_without_labels(tmp_path: Path) -> None:
    figure = _page(run_records(turns=40), tmp_path).figures["curves-cnn"]
    assert len([shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]) == 41
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["accuracy without a model: 0.400"]
    assert PERIOD / (BURN_IN + 40 * PERIOD) < MIN_LABELLED_SHARE


def test_the_last_value_of_a_step_logged_twice_counts() -> None:
    records = [{"kind": "metrics", "t": 1, "step": at, "values": {"cnn/loss": at + 0.5}} for at in (10, 20, 30)]
    again = [{"kind": "metrics", "t": 2, "step": at, "values": {"cnn/loss": float(at)}} for at in (20, 30, 40)]
    assert RunHistory(records + again, recipe("single")).curves == {
        "cnn/loss": [(10, 10.5), (20, 20.0), (30, 30.0), (40, 40.0)]
    }


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (
            {},
            "Unfinished: still running, or killed. The last record was written after step 150 of 280.",
        ),
        (
            {"status": "failed", "error": "disk <full>"},
            "Failed after step 150 of 280: disk <full>",
        ),
        (
            {"status": "preempted", "error": ""},
            "Preempted after step 150 of 280: a checkpoint was saved; resume the run to continue.",
        ),
    ],
)
def test_the_status_of_a_run_that_did_not_finish(tmp_path: Path, end: Record, text: str) -> None:
    records = [record for record in run_records() if record["kind"] != "result" and record.get("step", 0) <= 150][:-1]
    records += [{"kind": "end", "t": records[-1]["t"] + 1, **end}] if end else []
    page = _page(records, tmp_path)
    assert text in " ".join(page.texts["status"].split())
    _, cnn, *_ = page.tables["models"]
    assert cnn[2:6] == ["150", "-", f"{1 - math.exp(-1) * 0.8:.4f}", "-"]
    assert "curves-cnn" in page.figures
    assert "tags" not in page.figures


def test_a_run_that_failed_before_its_data_has_a_report(tmp_path: Path) -> None:
    first = run_records()[0]
    page = _page([first, {"kind": "end", "t": first["t"], "status": "failed", "error": "no data"}], tmp_path)
    assert page.texts["status"].strip() == "Failed after step 0: no data"
    assert page.figures == {}
    assert page.tables["models"][1][2:6] == ["-", "-", "-", "-"]
