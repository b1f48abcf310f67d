"""The Grafana dashboard of runs, and what it says against the metrics that there are."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.training.ray_metrics import RunMetric

FILE = Path(__file__).parents[1] / "cluster" / "grafana" / "antiphon-runs.json"
NAME = re.compile(r"\bray_\w+")
BY = re.compile(r"by \(([^)]*)\)")
SELECTED = re.compile(r"(\w+)=~?\"")
VARIABLE = re.compile(r"\$\{?(\w+)")
OWN_LABELS = {"le"}  # of a histogram's buckets
BUILT_IN = {"__rate_interval", "__all"}  # variables that Grafana sets itself


def dashboard() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text()))


def legend_labels(target: Mapping[str, Any]) -> list[str]:
    """The labels that a query's legend names."""
    return re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])


def exported(metrics: Mapping[str, RunMetric]) -> dict[str, RunMetric]:
    """The metrics by the names that Prometheus sees."""
    names: dict[str, RunMetric] = {}
    for name, metric in metrics.items():
        for suffix in ("_bucket", "_count") if metric.kind == "histogram" else ("",):
            names[f"ray_{name}{suffix}"] = metric
    return names


def faults(board: dict[str, Any], metrics: Mapping[str, RunMetric]) -> Iterator[str]:
    """What is wrong with a dashboard: one line each."""
    panels, known = board["panels"], exported(metrics)
    ids = [panel["id"] for panel in panels]
    yield from (f"id {number} twice" for number in {number for number in ids if ids.count(number) > 1})
    cells: dict[tuple[int, int], str] = {}
    shown: set[str] = set()
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x >= 24 or cells.setdefault((x, y), panel["title"]) != panel["title"]:
                    yield f"{panel['title']}: lies over {cells.get((x, y), 'the edge')}"
        refs = [target["refId"] for target in panel["targets"]]
        if len(set(refs)) < len(refs) or not refs:
            yield f"{panel['title']}: queries {refs}"
        for target in panel["targets"]:
            yield from (f"{panel['title']}: {fault}" for fault in _query_faults(target, known))
            shown |= set(NAME.findall(target["expr"]))
    defined = {variable["name"] for variable in board["templating"]["list"]} | BUILT_IN
    yield from (f"variable {name}" for name in set(VARIABLE.findall(json.dumps(board))) - defined)
    asked = [json.dumps(variable["query"]) for variable in board["templating"]["list"]]
    yield from (f"variable of {name}" for text in asked for name in NAME.findall(text) if name not in known)
    shown_metrics = [known[name] for name in shown if name in known]
    yield from (f"{name}: in no panel" for name, metric in metrics.items() if metric not in shown_metrics)


def _query_faults(target: Mapping[str, Any], known: Mapping[str, RunMetric]) -> Iterator[str]:
    names = NAME.findall(target["expr"])
    if not names:
        yield f"no metric in {target['expr']}"
    labels = {label for by in BY.findall(target["expr"]) for label in by.split(", ")}
    kept = set(labels)
    labels |= set(SELECTED.findall(target["expr"]))
    for name in names:
        if name not in known:
            yield f"{name} does not exist"
        elif strange := labels - set(known[name].labels) - OWN_LABELS:
            yield f"{name} has no label {min(strange)}"
        elif known[name].kind == "counter" and not re.search(rf"(rate|increase)\({name}\b", target["expr"]):
            yield f"{name} is a counter: of interest is its rate"
    yield from (f"legend names {label}" for label in legend_labels(target) if label not in kept)
