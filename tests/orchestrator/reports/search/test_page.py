"""The page of a search shows what its files hold, claims no more than they show, and needs no network."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe
from orchestrator.reports.figure_style import BEST
from orchestrator.reports.search.figures import pareto_front
from orchestrator.reports.search.formatting import format_setting
from orchestrator.reports.search.page import render_body, write_search_report
from orchestrator.reports.search.snapshot import read_search
from orchestrator.reports.search.timeline import spans, utilisation
from orchestrator.reports.search.verdict import verdict
from orchestrator.reports.write import rewrite_report
from orchestrator.search.request import SearchRequest
from tests import searches
from tests.pages import Page

BETTER = searches.BETTER


def _page(folder: Path) -> Page:
    out = folder.with_name(folder.name + ".html")
    write_search_report(read_search(str(folder)), out)
    return Page(out.read_text(encoding="utf-8"))


def _whole(tmp_path: Path, **options: Any) -> tuple[Page, list[dict[str, Any]]]:
    results = searches.write_finished_search(str(tmp_path / "search"), **options)
    return _page(tmp_path / "search"), results


@pytest.fixture(scope="module")
def asha(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[dict[str, Any]]]:
    return _whole(tmp_path_factory.mktemp("asha"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[dict[str, Any]]]:
    options = {"scheduler": "none", "second": "macs", "tracking": "http://me:secret@127.0.0.1:5000/"}
    return _whole(tmp_path_factory.mktemp("full"), **options)


def test_the_page_says_that_the_tracking_uri_must_be_given_again(
    full: tuple[Page, Any], asha: tuple[Page, Any]
) -> None:
    note = "First set MLFLOW_TRACKING_URI to http://***@127.0.0.1:5000/ with its secret, which is not stored."
    assert full[0].texts["what_to_set"] == note
    assert "what_to_set" not in asha[0].texts


def test_the_leaderboard_has_every_trial_the_best_first(asha: tuple[Page, Any]) -> None:
    page, results = asha
    head, *rows = [[cell.strip() for cell in row] for row in page.tables["leaderboard"] + page.tables["more"][1:]]
    assert head[:5] == ["trial", "val log_loss", *searches.SPACE]
    done = sorted((entry for entry in results if entry["status"] == "done"), key=lambda entry: entry["objective"])
    for row, entry in zip(rows, done, strict=False):
        values = [f"{value:.3g}" for value in list(entry["settings"].values())[:2]]
        values.append({60: "period 60, turns 6", 120: "period 120, turns 3"}[entry["settings"]["schedule"]["period"]])
        seconds = f"{entry['ended'] - entry['began']:.0f} s"
        assert row == [str(entry["number"]), f"{entry['objective']:.4f}", *values, "completed", "360", seconds, ""]
    assert [row[5] for row in rows] == ["completed"] * 9 + ["stopped early"] * 14 + ["failed"]
    stopped = [entry["history"][-1]["objective"] for entry in results if entry["status"] == "stopped"]
    assert [row[1] for row in rows[9:-1]] == [f"{value:.4f}" for value in sorted(stopped)]


def test_it_loads_nothing_and_runs_no_text_of_files(asha: tuple[Page, Any]) -> None:
    page, _ = asha
    assert page.loads == ["http://127.0.0.1:8265"]  # a link to the Ray dashboard, to be clicked
    assert page.tags.count("script") == 2 + len(page.figures)
    assert page.tables["failed"][1][2] == "ValueError: <script>alert('x')</script> & no clip of fold 3 could be read"
    for figure in page.figures.values():
        assert "<script" not in json.dumps(figure)
    (timeline,) = (t for t in page.figures["timeline-all"]["data"] if t["name"] == "failed")
    assert "&lt;script&gt;alert('x')&lt;/script&gt; &amp; no clip" in timeline["hovertext"][0]


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (
            BETTER,
            "Better than the control: the winner's val log_loss is 0.0300 below that of its control without teachers "
            "(mean of 3 pairs of seeds",
        ),
        (
            BETTER | {"difference": 0.02, "low": 0.01, "high": 0.03},
            "Worse than the control: the winner's val log_loss is",
        ),
        (
            BETTER | {"high": 0.01, "excludes_control": False},
            "Inconclusive: the winner's val log_loss is 0.0300 below",
        ),
        (
            BETTER | {"low": None, "high": None, "pairs": 1, "excludes_control": None},
            "but there is no confidence interval from 1 pair of seeds",
        ),
        (None, "Not compared with the control, the same models without teachers: no pair"),
    ],
)
def test_the_summary_claims_only_what_the_interval_shows(tmp_path: Path, comparison: Any, text: str) -> None:
    searches.write_finished_search(str(tmp_path), comparison=comparison)
    assert text in verdict(read_search(str(tmp_path)), searches.BEGAN).control


def test_the_summary_has_the_best_settings(asha: tuple[Page, Any]) -> None:
    page, _ = asha
    assert page.texts["best"] == (
        "Best settings: edges.0.weight 0.604, edges.0.temperature 3.23, schedule period 60, turns 6 (trial 16, "
        "val log_loss 0.3968, lower is better)."
    )
    assert page.texts["control"].startswith("Better than the control: ")
    assert page.texts["state"] == "Finished: 24 trials (9 completed, 14 stopped early, 1 failed)."


def test_another_trial_may_win_over_several_seeds(tmp_path: Path) -> None:
    searches.write_finished_search(str(tmp_path / "search"))
    outcome = json.loads((tmp_path / "search" / "outcome.json").read_text())
    outcome["winner"] = {"number": 14, "settings": {"edges.0.weight": 0.644}}
    (tmp_path / "search" / "outcome.json").write_text(json.dumps(outcome))
    assert verdict(read_search(str(tmp_path / "search")), searches.BEGAN).best == (
        "Best settings: trial 14 (edges.0.weight 0.644). Trial 16 is better on one seed, but completed later and "
        "was not compared over several seeds: the test fold is scored for one winner only."
    )
    (tmp_path / "search" / "finals" / "finalist-0016-seed-1").mkdir()
    results = json.loads((tmp_path / "search" / "trials" / "0016" / "result.json").read_text())
    searches.write_task_end(
        str(tmp_path / "search"), results | {"kind": "finalist", "seed": 1}, name="finalist-0016-seed-1"
    )
    assert verdict(read_search(str(tmp_path / "search")), searches.BEGAN).best == (
        "Best settings: trial 14 (edges.0.weight 0.644). It won over several seeds; on one seed trial 16 was better."
    )


def test_slice_plots_show_comparable_scores(asha: tuple[Page, Any]) -> None:
    page, results = asha
    early, means, late = page.figures["slice-1"]["data"]
    judged = [entry for entry in results if entry["status"] != "failed"]
    assert early["name"] == "all trials after 120 steps"
    assert early["x"] == [entry["settings"]["edges.0.temperature"] for entry in judged]
    assert early["y"] == [entry["history"][0]["objective"] for entry in judged]
    ordered = sorted(judged, key=lambda entry: entry["settings"]["edges.0.temperature"])
    first = [entry["history"][0]["objective"] for entry in ordered[: round(23 / 5)]]
    assert means["y"][0] == pytest.approx(sum(first) / len(first))
    assert late["y"] == sorted(entry["objective"] for entry in results if entry["status"] == "done")
    assert page.figures["slice-1"]["layout"]["xaxis"]["type"] == "log"
    choices = page.figures["slice-2"]
    assert choices["layout"]["xaxis"]["categoryarray"] == ["period 60, turns 6", "period 120, turns 3"]
    assert set(choices["data"][0]["x"]) == {"period 60, turns 6", "period 120, turns 3"}


def test_importance_finds_what_the_score_depends_on(full: tuple[Page, Any], tmp_path: Path) -> None:
    (bars,) = full[0].figures["importance-all"]["data"]
    share = dict(zip(bars["y"], bars["x"], strict=True))
    assert 0.5 < sum(share.values()) < 1, "what two parameters do together is in neither share"
    assert share["schedule"] < 0.05 < min(share["edges.0.weight"], share["edges.0.temperature"])
    searches.write_finished_search(str(tmp_path / "few"), trials=6, failing=())
    few = _page(tmp_path / "few")
    assert "importance-all" not in few.figures
    assert few.texts["importance"] == "Needs 6 more scored trials."


def test_equal_scores_have_no_importance(tmp_path: Path) -> None:
    uri = str(tmp_path / "flat")
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in searches.results(scheduler="none", trials=12, failing=()):
        searches.write_task_end(uri, entry | {"objective": 0.5})
    assert (
        _page(tmp_path / "flat").texts["importance"] == "All objective values are equal, so no parameter explains them."
    )


def test_parallel_coordinates_have_a_line_for_each_trial(full: tuple[Page, Any]) -> None:
    page, results = full
    lines = [trace for trace in page.figures["parallel-all"]["data"] if trace["mode"] == "lines"]
    assert len(lines) == sum(entry["status"] == "done" for entry in results) == 23
    assert {line["y"][0] for line in lines} >= {0.0, 1.0}
    assert next(line for line in lines if line["y"][0] == 0)["line"]["color"] == BEST


def test_rung_curves_end_where_a_trial_was_stopped(asha: tuple[Page, Any]) -> None:
    page, results = asha
    traces = {trace["name"]: trace for trace in page.figures["curves-all"]["data"]}
    assert set(traces["stopped early"]["x"]) == {120, None}
    assert traces["best"]["x"] == [120, 240, 360, None]
    assert traces["best"]["y"][:3] == [rung["objective"] for rung in results[16]["history"]]


def test_the_pareto_front_holds_the_trials_that_no_other_dominates(
    full: tuple[Page, Any], asha: tuple[Page, Any], tmp_path: Path
) -> None:
    page, results = full
    _, best = page.figures["pareto-all"]["data"]
    points = [(entry["second"], entry["objective"]) for entry in results if entry["status"] == "done"]
    expected = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    assert list(zip(best["x"], best["y"], strict=True)) == sorted(expected)
    assert "pareto-all" not in asha[0].figures
    assert "has one objective" in asha[0].texts["pareto"]
    searches.write_json(str(tmp_path), "search.json", value=searches.head(second="macs"))
    assert pareto_front(read_search(str(tmp_path))) == []


def test_the_timeline_shows_which_trial_used_which_slot(asha: tuple[Page, Any], tmp_path: Path) -> None:
    page, results = asha
    bars = {trace["name"]: trace for trace in page.figures["timeline-all"]["data"]}
    done = [entry for entry in results if entry["status"] == "done"]
    assert bars["completed"]["y"] == [f"slot {entry['slot']}" for entry in done]
    assert bars["completed"]["base"] == pytest.approx([(entry["began"] - searches.BEGAN) / 60 for entry in done])
    assert bars["completed"]["x"] == pytest.approx([38 / 60] * len(done))
    assert list(bars) == ["completed", "stopped early", "failed", "winner", "control"]
    uri = str(tmp_path)
    searches.write_json(uri, "search.json", value=searches.head())
    searches.write_json(uri, "cluster.json", value=searches.CLUSTER)
    entries = searches.results(failing=())[:2]
    for slot, entry in enumerate(entries):
        searches.write_task_start(uri, entry | {"slot": slot, "began": searches.BEGAN})
    searches.write_task_end(uri, entries[0] | {"slot": 0, "began": searches.BEGAN, "ended": searches.BEGAN + 10.0})
    drawn = spans(read_search(uri), now=searches.BEGAN + 40.0)
    assert [(span.row, span.group, span.end) for span in drawn] == [
        ("slot 0", "done", 10.0),
        ("slot 1", "running", 40.0),
    ]
    assert utilisation(drawn, 2) == pytest.approx(50 / 80)


def test_finals_are_shown_by_their_means(asha: tuple[Page, Any]) -> None:
    best = asha[1][16]["objective"]
    _, winner, control = asha[0].tables["finals"]
    scores = f"{best + 0.004:.4f} ({best:.4f} to {best + 0.008:.4f})"
    assert winner == ["winner", "16", "3 of 3", scores]
    assert control[0] == "control"
    assert asha[0].tables["tests"][1:] == [
        ["cnn", "accuracy", "0.8100 (0.8000 to 0.8200)", "0.7800 (0.7700 to 0.7900)"],
        ["vit", "accuracy", "0.7000", "0.6700"],
    ]


def test_links_lead_to_the_servers_without_passwords(full: tuple[Page, Any], tmp_path: Path) -> None:
    page, _ = full
    best = page.tables["leaderboard"][1]
    assert page.loads[:3] == [
        "http://127.0.0.1:5000/#/experiments/1/runs/feed?workflowType=machine_learning",
        "http://127.0.0.1:8265",
        f"http://127.0.0.1:5000/#/experiments/1/runs/{int(best[0]):032x}?workflowType=machine_learning",
    ]
    searches.write_finished_search(str(tmp_path / "sql"), tracking="sqlite:////runs/mlflow.db", trials=12)
    local = _page(tmp_path / "sql")
    assert "ui --backend-store-uri sqlite:////runs/mlflow.db" in local.texts["links"]
    searches.write_finished_search(str(tmp_path / "no-names"), tracking="http://127.0.0.1:5000", trials=12)
    for written in ({"": "experiments/1/runs/../../elsewhere"}, {}):
        (tmp_path / "no-names" / "mlflow.json").write_text(json.dumps(written))
        assert _page(tmp_path / "no-names").loads == ["http://127.0.0.1:5000", "http://127.0.0.1:8265"]
    searches.write_json(str(tmp_path / "bad"), "search.json", value=searches.head())
    searches.write_json(
        str(tmp_path / "bad"), "cluster.json", value=searches.CLUSTER | {"dashboard": "javascript:alert(1)"}
    )
    assert _page(tmp_path / "bad").loads == []


def test_a_schedule_is_printed_by_its_kind_and_what_differs_within_it(tmp_path: Path) -> None:
    alternate = {"kind": "alternate", "burn_in": 8, "order": ["vit", "cnn"]}
    choices = [alternate | {"period": 20}, alternate | {"period": 10}, {"kind": "mutual", "burn_in": 8, "steps": 16}]
    head = searches.head()
    head["recipe"]["search"] |= {"space": {"schedule": {"choices": choices}}}
    searches.write_json(str(tmp_path), "search.json", value=head)
    search = read_search(str(tmp_path))
    text = [format_setting(search, "schedule", choice) for choice in choices]
    assert text == ["alternate, period 20", "alternate, period 10", "mutual"]


def test_full_length_runs_are_compared_with_the_ranking_of_the_trials(tmp_path: Path, asha: tuple[Page, Any]) -> None:
    assert asha[0].texts["agreement"].startswith("Not measured: a trial takes 10% of a full run")
    results = searches.write_finished_search(str(tmp_path / "search"))
    outcome = json.loads((tmp_path / "search" / "outcome.json").read_text())
    best = sorted((entry for entry in results if entry["status"] == "done"), key=lambda entry: entry["objective"])
    chosen = [best[place] for place in (0, 4, 8)]
    found: dict[str, Any] = {"trials": [entry["number"] for entry in chosen], "full": [0.2, 0.1, 0.3]}
    found |= {"short": [entry["objective"] for entry in chosen], "tau": 1 / 3, "p": 1.0}
    (tmp_path / "search" / "outcome.json").write_text(json.dumps(outcome | {"agreement": found}))
    page = _page(tmp_path / "search")
    assert page.texts["agreement"].startswith("3 completed trials, evenly spread from the best to the worst")
    assert "is +0.33 (p 1)" in page.texts["agreement"]
    (dots,) = page.figures["agreement-all"]["data"]
    assert (dots["x"], dots["y"], dots["text"]) == (found["short"], found["full"], [str(n) for n in found["trials"]])


def test_an_empty_search_names_what_is_missing(tmp_path: Path) -> None:
    searches.write_json(str(tmp_path / "empty"), "search.json", value=searches.head() | {"created": 4e9})
    page = _page(tmp_path / "empty")
    assert page.figures == {}
    assert page.texts["state"] == "Running. 0 of at most 24 trials have ended."
    assert page.texts["best"] == "No trial has completed with an objective value, so there are no best settings."
    assert page.texts["control"].startswith("Not compared with the control yet")
    assert page.texts["timeline"] == "No trial has started."


@pytest.mark.parametrize("count", range(1, 8))
def test_a_search_has_a_page_at_every_moment(tmp_path: Path, count: int) -> None:
    uri, results = str(tmp_path), searches.results()
    searches.write_json(uri, "search.json", value=searches.head())
    for entry in results[: count + 2]:
        searches.write_task_start(uri, entry)
    for entry in results[:count][::-1]:
        searches.write_task_end(uri, entry)
    text = render_body(read_search(uri))
    assert f"{count} of at most 24 trials have ended" in text
    assert "it may have been killed" in text


def test_report_writes_a_search_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches.write_finished_search(str(tmp_path / "search"), trials=12)
    monkeypatch.chdir(tmp_path)
    assert rewrite_report("search", "") == str(tmp_path / "search.html"), (
        "not what search.json says: it may be any path"
    )
    assert Page((tmp_path / "search.html").read_text()).texts["state"].startswith("Finished: 12 trials")
    with pytest.raises(ValueError, match="give a run's or a search's folder"):
        rewrite_report(str(tmp_path), "")


def test_the_command_repeats_the_search_from_another_folder(tmp_path: Path) -> None:
    searches.write_finished_search(str(tmp_path / "search"))
    definition = json.loads((tmp_path / "search" / "search.json").read_text())
    request = SearchRequest(load_recipe("search-demo"), "", tracking="none", budget="2 h", finals=False, full=3)
    definition["options"] = request.repeat_options("/my runs/search-demo-1")
    definition["recipe"]["about"] = "it's <b>$HOME</b>"
    (tmp_path / "search" / "search.json").write_text(json.dumps(definition))
    page = _page(tmp_path / "search")
    program, arguments = tmp_path / "antiphon", tmp_path / "arguments"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{arguments}'\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", page.texts["commands"]], cwd=tmp_path, env={"PATH": path}, check=True)
    words = ["search", "search-demo-1.recipe.json", "--storage", "/my runs", "--tracking", "none"]
    assert arguments.read_text().splitlines() == [*words, "--budget", "2 h", "--no-finals", "--full", "3"]
    assert json.loads((tmp_path / "search-demo-1.recipe.json").read_text()) == definition["recipe"]
    assert page.texts["typed"] == "antiphon search demo --trials 24"
