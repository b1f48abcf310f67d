"""The metrics of runs: their names, the dashboard and the document that show them. Their values: integration tests."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.ray_metrics import METRICS, STEP_BOUNDARIES_S
from tests.grafana import dashboard, faults

DOCUMENT = Path(__file__).parents[3] / "docs" / "cluster.md"


def test_names_say_kind_and_unit() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"antiphon_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert ("seconds" in name) == metric.about.startswith("Seconds"), name
        assert ("bytes" in name) == ("memory" in metric.about.lower()), name
        assert {"run_id", "rank"} <= set(metric.labels) <= {"run_id", "rank", "model"}
    assert sorted(STEP_BOUNDARIES_S) == STEP_BOUNDARIES_S


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    assert list(faults(dashboard(), METRICS)) == []


def change_query(board: dict[str, Any], old: str, new: str) -> None:
    for panel in board["panels"]:
        for target in panel["targets"]:
            target["expr"] = target["expr"].replace(old, new)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "id": (lambda board: board["panels"][1].update(id=1), "id 1 twice"),
    "place": (lambda board: board["panels"][1]["gridPos"].update(x=11), "Loss: lies over Clips per second"),
    "edge": (lambda board: board["panels"][1]["gridPos"].update(x=13), "Loss: lies over the edge"),
    "reference": (lambda board: board["panels"][2]["targets"][1].update(refId="A"), "queries ['A', 'A', 'C']"),
    "metric": (lambda board: change_query(board, "antiphon_loss", "antiphon_los"), "ray_antiphon_los does not exist"),
    "sum": (lambda board: change_query(board, "seconds_bucket", "seconds_sum"), "seconds_sum does not exist"),
    "label": (lambda board: change_query(board, "(run_id, model) (ray", "(run, model) (ray"), "has no label run"),
    "legend": (lambda board: change_query(board, "by (run_id, rank)", "by (run_id)"), "legend names rank"),
    "counter": (lambda board: change_query(board, "rate(ray_antiphon_clips", "max(ray_antiphon_clips"), "is a counter"),
    "variable": (lambda board: change_query(board, "$run_id", "$run"), "variable run"),
    "unseen": (lambda board: board["panels"].pop(), "antiphon_step: in no panel"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_dashboard_is_caught(what: str) -> None:
    breaks, expected = BROKEN[what]
    board = copy.deepcopy(dashboard())
    breaks(board)
    assert expected in "\n".join(faults(board, METRICS))


def test_the_document_lists_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(ray_antiphon_\w+)` \| (\w+) \| ([^|]+) \|", DOCUMENT.read_text(), re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == {f"ray_{name}": (metric.kind, metric.labels[1:]) for name, metric in METRICS.items()}
