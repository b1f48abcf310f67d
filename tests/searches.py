"""Search folders as `antiphon search` writes them, with scores computed from the settings; the same at each call."""

import json
import math
import random
from typing import Any

from orchestrator.storage import object_store

BEGAN = 1_790_000_000.0
STEPS = (120, 240, 360)
RUNG_SECONDS = 12.0
SPACE: dict[str, dict[str, Any]] = {
    "edges.0.weight": {"low": 0.1, "high": 0.9, "log": False},
    "edges.0.temperature": {"low": 1.0, "high": 4.0, "log": True},
    "schedule": {"choices": [{"kind": "alternate", "period": period, "turns": 360 // period} for period in (60, 120)]},
}
Settings = dict[str, Any]


def objective(settings: Settings, step: int, noise: float = 0.0) -> float:
    """Log loss: best at weight 0.55, better with a higher temperature, independent of the schedule."""
    weight, temperature = settings["edges.0.weight"], settings["edges.0.temperature"]
    floor = 0.36 + 0.9 * (weight - 0.55) ** 2 + 0.05 * (math.log(4) - math.log(temperature)) ** 2
    return floor + 0.5 * math.exp(-step / 130) + noise


def head(*, scheduler: str = "asha", trials: int = 24, second: str = "", tracking: str = "none") -> Settings:
    """The content of search.json."""
    search = {
        "searcher": "tpe",
        "scheduler": scheduler,
        "trials": trials,
        "rungs": 3,
        "share": 0.1,
        "slices": 2,
        "second": second,
    }
    search |= {"metric": "log_loss", "models": ["cnn", "vit"], "finalists": 2, "repeats": 3, "seed": 0, "space": SPACE}
    return {
        "search_id": "search-demo-1",
        "created": BEGAN,
        "command": "antiphon search demo --trials 24",
        "recipe": {"name": "demo", "about": "CNN & Transformer <i>alternate</i>", "search": search},
        "tracking": tracking,
    }


CLUSTER = {"slots": 2, "dashboard": "http://127.0.0.1:8265", "trials": 24}


def results(*, scheduler: str = "asha", trials: int = 24, failing: tuple[int, ...] = (5,)) -> list[Settings]:
    """The result of each trial, on two slots; with a scheduler the worse half stops at each rung."""
    draw, free, entries = random.Random(0), [BEGAN + 3.0, BEGAN + 4.0], []
    thresholds = [0.63, 0.50, math.inf] if scheduler != "none" else [math.inf] * 3
    for number in range(trials):
        settings = {
            "edges.0.weight": round(draw.uniform(0.1, 0.9), 3),
            "edges.0.temperature": round(math.exp(draw.uniform(0, math.log(4))), 3),
            "schedule": draw.choice(SPACE["schedule"]["choices"]),
        }
        slot = free.index(min(free))
        history = []
        for step, threshold in zip(STEPS, thresholds, strict=True):
            score = objective(settings, step, draw.gauss(0, 0.006))
            history.append({"step": step, "objective": score, "values": {"cnn/val/log_loss": score - 0.02}})
            if score > threshold:
                break
        entry = _result(number, settings, history, free[slot], slot)
        if number in failing:
            entry |= {"status": "failed", "objective": None, "second": None, "history": history[:1]}
            entry |= {"reason": "ValueError: <script>alert('x')</script> & no clip of fold 3 could be read"}
        elif len(history) < len(STEPS):
            entry |= {"status": "stopped", "objective": None, "second": None}
        free[slot] = entry["ended"] + draw.uniform(1.0, 2.5)
        entries.append(entry)
    return entries


def _result(number: int, settings: Settings, history: list[Settings], began: float, slot: int) -> Settings:
    seconds = RUNG_SECONDS * len(history)
    return {
        "number": number,
        "kind": "trial",
        "settings": settings,
        "seed": None,
        "status": "done",
        "reason": "",
        "objective": history[-1]["objective"],
        "second": 4e8 + 2e8 * settings["edges.0.weight"] + 1e6 * number,
        "history": history,
        "began": began,
        "ended": began + seconds + 2.0,
        "loop_seconds": seconds,
        "host": "node-a",
        "slot": slot,
        "course": [],
    }


def finals(best: Settings, *, ended: float) -> dict[str, Settings]:
    """The winner and its control without teachers, three seeds each, by name."""
    entries = {}
    for seed in range(3):
        for slot, (kind, worse) in enumerate((("winner", 0.0), ("control", 0.03))):
            score = best["objective"] + worse + 0.004 * seed
            history = [{"step": STEPS[-1], "objective": score, "values": {}}]
            settings = best["settings"] if kind == "winner" else {}
            entry = _result(best["number"], {**best["settings"]}, history, ended + 45.0 * seed, slot)
            entry |= {"kind": kind, "seed": seed, "objective": score, "settings": settings}
            entry |= {"loop_seconds": 36.0, "ended": entry["began"] + 40.0}
            entry |= {"test": {"cnn": {"accuracy": 0.8 - worse + 0.01 * seed}, "vit": {"accuracy": 0.7 - worse}}}
            entries[f"{kind}-{best['number']:04}-seed-{seed}"] = entry
    return entries


def outcome(entries: list[Settings], *, comparison: Settings | None, status: str = "done") -> Settings:
    """The content of outcome.json for these results."""
    count = {name: sum(entry["status"] == name for entry in entries) for name in ("done", "failed", "stopped")}
    best = min((entry for entry in entries if entry["status"] == "done"), key=lambda entry: entry["objective"])
    best = {key: best[key] for key in ("number", "settings", "objective")}
    spent = {"seconds": 640.0, "overhead_s_per_trial": 2.1, "slots": 2}
    counted = {"completed": count["done"], "failed": count["failed"], "stopped": count["stopped"]}
    ended = {"search_id": "search-demo-1", "status": status, "trials": len(entries), **counted, **spent}
    return {
        **ended,
        "best": best,
        "winner": {key: best[key] for key in ("number", "settings")},
        "comparison": comparison,
        "test": None,
        "agreement": None,
    }


BETTER = {"metric": "val log_loss", "difference": -0.03, "low": -0.05, "high": -0.01, "pairs": 3}
BETTER |= {"excludes_control": True}


def write_json(uri: str, *names: str, value: Settings) -> None:
    """Write one JSON file of a search, which must not exist."""
    assert object_store.create_exclusively(object_store.join(uri, *names), json.dumps(value).encode())


def write_task_start(uri: str, entry: Settings, *, name: str = "") -> None:
    """Write the file that a search writes when a task starts."""
    settings = {key: entry[key] for key in ("number", "kind", "settings", "seed", "slot", "began")}
    write_json(uri, *_folder(entry, name), "settings.json", value=settings)


def write_task_end(uri: str, entry: Settings, *, name: str = "") -> None:
    """Write the file that a search writes when a task ends."""
    write_json(uri, *_folder(entry, name), "result.json", value=entry)


def _folder(entry: Settings, name: str) -> tuple[str, str]:
    return ("finals", name) if name else ("trials", f"{entry['number']:04d}")


def write_finished_search(uri: str, *, comparison: Settings | None = BETTER, **options: Any) -> list[Settings]:
    """Write a finished search; returns the results of its trials."""
    entries = results(**{key: options[key] for key in ("scheduler", "trials", "failing") if key in options})
    heads = {key: options[key] for key in ("scheduler", "trials", "second", "tracking") if key in options}
    write_json(uri, "search.json", value=head(**heads))
    write_json(uri, "cluster.json", value=CLUSTER)
    write_json(
        uri,
        "mlflow.json",
        value={"": "experiments/1/runs/feed"}
        | {f"{entry['number']:04}": f"experiments/1/runs/{entry['number']:032x}" for entry in entries},
    )
    for entry in entries:
        write_task_start(uri, entry)
        write_task_end(uri, entry)
    ended = outcome(entries, comparison=comparison)
    for name, entry in finals(ended["best"], ended=max(entry["ended"] for entry in entries) + 2.0).items():
        write_task_start(uri, entry, name=name)
        write_task_end(uri, entry, name=name)
    write_json(uri, "outcome.json", value=ended)
    return entries
