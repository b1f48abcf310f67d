"""How runs differ: recipe values, code, data, steps, time and scores (`antiphon diff`).

Reads what runs have left, finished or not, and the test logits that models were published with; writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.recipes.loader import flatten
from orchestrator.runs.comparison import OtherClips, compare_folders, joined_predictions
from orchestrator.runs.recipe_file import read_recipe
from orchestrator.runs.records import records_of
from orchestrator.runs.resume import RECIPE
from orchestrator.storage import object_store, published_folders
from workloads.config.edge import teacher_name
from workloads.runtime.event_log import EVENT_LOG, end_of
from workloads.runtime.json_files import require_shape

UNFINISHED = "unfinished"
PARTS = ("val", "test")


class _ScoresRead(TypedDict):
    """What is read of a model's row in the `result` record."""

    val: dict[str, float]
    test: dict[str, float]


@dataclass(frozen=True)
class RunFacts:
    """A run by its resolved recipe and its records."""

    uri: str
    recipe: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def status(self) -> str:
        end = end_of(self.records)
        return str(end["status"]) if end else UNFINISHED

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The results by model; none of a run without any."""
        rows: dict[str, dict[str, Any]] = self.last("result").get("models", {})
        return rows

    @property
    def labels(self) -> str:
        return str(self.last("data").get("labels", self.recipe["data"]["labels"]))

    def last(self, kind: str) -> dict[str, Any]:
        """Its newest record of a kind; empty where there is none."""
        return next((record for record in reversed(self.records) if record["kind"] == kind), {})

    def facts(self) -> dict[str, Any]:
        """What is said of every run, whether it differs or not."""
        data, run = self.last("data"), self.last("run")
        steps = [record["step"] for record in self.records if record["kind"] in ("metrics", "checkpoint")]
        return {
            "status": self.status,
            "code": run.get("tags", {}).get("git_commit", ""),
            "data": data.get("fingerprint", ""),
            "clips": data.get("clips"),
            "steps": self.last("result").get("steps", max(steps, default=0)),
            "seconds": self._seconds(),
            "workers": run.get("tags", {}).get("workers", ""),
        }

    def _seconds(self) -> float:
        """From the first to the last record of each attempt: an interruption does not count."""
        total, began, before = 0, None, None
        for record in self.records:
            if record["kind"] == "run" or began is None:
                total += before - began if began is not None and before is not None else 0
                began = record["t"]
            before = record["t"]
        return (total + (before - began if began is not None and before is not None else 0)) / 1000


def diff_runs(uris: Sequence[str]) -> dict[str, Any]:
    """What differs among runs, in their order; the first one is what scores are compared with.

    `runs`: their names; `facts`: rows of one value a run; `recipe`: the values that differ, by their path, None where a
    recipe has no such key, and models and edges that not all have, in words; `equal`: how many are equal; `scores`: of
    each model by part and metric, with a 95 % interval where test predictions are stored; `compared`: differences to
    the first run, above 0 is better; `not_compared`: why some are missing.

    Raises ValueError for fewer than two runs, one that is named twice, one that is not there, and one whose recipe.json
    or result is no run's.
    """
    if len(uris) < 2:
        raise ValueError(f"RUN: {len(uris)} given; name two runs or more")
    places = [str(object_store.local_path(uri)) if object_store.is_local(uri) else uri.rstrip("/") for uri in uris]
    if twice := [uri for number, uri in enumerate(uris) if places[number] in places[:number]]:
        raise ValueError(f"RUN {twice[0]!r}: is named twice; name each run once")
    runs = [_read(uri) for uri in uris]
    differing, equal = _recipe_rows([run.recipe for run in runs])
    facts = [run.facts() for run in runs]
    compared, not_compared = _compared(runs)
    return {
        "runs": _names(runs),
        "facts": {key: [own[key] for own in facts] for key in facts[0]},
        "recipe": differing,
        "equal": equal,
        "scores": _scores(runs),
        "compared": compared,
        "not_compared": not_compared,
    }


def _recipe_rows(recipes: Sequence[dict[str, Any]]) -> tuple[dict[str, list[str | None]], int]:
    """The rows of what differs, and how many values are equal."""
    flat = [flatten(recipe) for recipe in recipes]
    paths = list(dict.fromkeys(path for values in flat for path in values))
    rows: dict[str, list[str | None]] = {}
    equal = 0
    for path in paths:
        values, table = [own.get(path) for own in flat], _table_of(path)
        has_it = [any(other.startswith(f"{table}.") for other in own) for own in flat]
        if table and not all(has_it):  # one row for the table, and one for what differs where it is there
            rows.setdefault(table, [_summary(recipe, table) for recipe in recipes])
            values = [value for value, there in zip(values, has_it, strict=True) if there]
        if len(set(values)) == 1:
            equal += bool(not table or all(has_it))
        else:
            rows[path] = [own.get(path) for own in flat]
    if any(path.startswith("edges.") for path in rows):
        rows.pop("edges", None)  # of a recipe without any
    return rows, equal


def _table_of(path: str) -> str:
    """The model or the edge that a value belongs to; empty for other values."""
    parts = path.split(".")
    return ".".join(parts[:2]) if parts[0] in ("models", "edges") and len(parts) > 2 else ""


def _summary(recipe: dict[str, Any], table: str) -> str | None:
    """A model or an edge in a few words; None where the recipe has none of that name or number."""
    kind, key = table.split(".")
    if kind == "models":
        model = recipe["models"].get(key)
        return model and f"{model['arch']['family']}, lr {model['optimizer']['lr']:g}"
    edges = recipe["edges"]
    edge = edges[int(key)] if int(key) < len(edges) else None
    return edge and f"{teacher_name(edge['teacher'])} -> {edge['student']}, weight {edge['weight']:g}"


def _read(uri: str) -> RunFacts:
    recipe = read_recipe(uri)
    if recipe is None:
        raise ValueError(f"RUN {uri!r}: no {RECIPE} there; give a run's folder or URI, STORAGE/RUN_ID")
    run = RunFacts(uri, recipe, records_of(uri))
    require_shape(run.models, f"{object_store.join(uri, EVENT_LOG)}: models of its result", dict[str, _ScoresRead])
    return run


def _names(runs: Sequence[RunFacts]) -> list[str]:
    """The last parts of their URIs, or the whole URIs where these are alike."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.uri for run in runs]


def _scores(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """A row for each model, part and metric that a run has, with one entry a run."""
    keys = dict.fromkeys(
        (model, part, metric)
        for run in runs
        for model, row in run.models.items()
        for part in PARTS
        for metric in row[part]
        if metric != "tags_skipped"
    )
    intervals = [_intervals(run) for run in runs]
    return [
        {
            "model": model,
            "part": part,
            "metric": metric,
            "runs": [
                {"value": value, "interval": own.get((model, metric)) if part == "test" else None}
                if (value := run.models.get(model, {}).get(part, {}).get(metric)) is not None
                else None
                for run, own in zip(runs, intervals, strict=True)
            ],
        }
        for model, part, metric in keys
    ]


def _intervals(run: RunFacts) -> dict[tuple[str, str], list[float]]:
    """The 95 % interval of each test score that has one, by model and metric; of stored predictions."""
    from workloads.evaluate.bootstrap import score_intervals

    found = {}
    for model in run.models:
        folder = _published(run, model)
        if folder and run.models[model]["test"]:
            try:
                predictions = joined_predictions([folder])
            except ValueError:  # a file is gone or damaged: `_compare` says so
                continue
            for metric, interval in score_intervals(predictions["logits_NC"], predictions["y_NC"], run.labels).items():
                found[model, metric] = interval
    return found


def _published(run: RunFacts, model: str) -> str:
    """The folder of a delivered model, where the run is now; empty where there is none."""
    try:
        return published_folders.published_folder(object_store.join(run.uri, "models", model))
    except ValueError:
        return ""


def _compared(runs: Sequence[RunFacts]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Differences of the models of later runs to those of the same name in the first, on the same test clips."""
    first, compared, missing = runs[0], [], {}
    for run, name in zip(runs[1:], _names(runs)[1:], strict=True):
        shared = [model for model in run.models if model in first.models]
        if not shared:
            missing[name] = f"no finished model has the name of one in {_names(runs)[0]}"
        reasons: dict[str, str] = {}
        for model in shared:
            found = _compare(model, run, first)
            if isinstance(found, str):
                reasons[model] = found
            else:
                compared += [{"run": name, "model": model} | row for row in found]
        if reasons:
            same = len({*reasons.values()}) == 1 and len(reasons) == len(shared)
            each = [f"{model}: {reason}" for model, reason in reasons.items()]
            missing[name] = reasons[shared[0]] if same else "; ".join(each)
    return compared, missing


def _compare(model: str, run: RunFacts, first: RunFacts) -> list[dict[str, Any]] | str:
    """The differences of one model, in its primary score and in log loss; or why there are none."""
    folders = [_published(side, model) for side in (run, first)]
    if not all(side.models[model]["test"] for side in (run, first)) or not all(folders):
        return "no test predictions are stored"
    try:
        row = compare_folders(model, [[[folder] for folder in folders]], run.labels)
    except OtherClips:
        return "it was trained or tested on other clips, or with other labels"
    except ValueError as error:  # no tag can be scored, or a file is gone or damaged
        return str(error)
    scores = ((row["metric"], row), ("log_loss", row["log_loss"]))
    return [{"metric": metric, **{key: own[key] for key in ("difference", "interval")}} for metric, own in scores]
