"""A trial is learned: from rung to rung, in the process that calls, or by workers of its own.

Knows neither who proposes nor who stops: it says how it does at every rung, and what it is told then ends it. Its
result is committed once (`search_files.py`); asked again, it tells what it told before and learns nothing.
"""

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.search.rungs import Clock
from orchestrator.search.store import read_result, read_rungs, write_result, write_rungs, write_settings
from orchestrator.search.trial_distributed import climb_together
from orchestrator.search.trial_in_process import climb
from orchestrator.search.trial_spec import Task, goes_on, searched
from workloads.config.recipe import Recipe

Report = Callable[[dict[str, Any]], None]


def learn(recipe: Recipe, task: Task, search_uri: str, report: Report, *, workers: int = 1, start: str = "") -> None:
    """Learn and judge a task of the search at `home`; `report` hears every rung and may end it by raising.

    It goes on from the checkpoint at `start`, another trial's, or from its own newest if it keeps any. What goes
    wrong for good (a recipe that cannot be, numbers that are not finite) is the trial's result; what may go better
    another time is raised.
    """
    from workloads.evaluate.predict import BadNumbers

    done = read_result(search_uri, task)
    if done is not None:
        for height, rung in enumerate(done["history"], start=1):
            report({"rung": rung, "height": height, "records": []})
        return
    began, clock = time.time(), Clock()
    if goes_on(searched(recipe), task) and (before := read_rungs(search_uri, task)):
        began, clock.seconds = before["began"], before["loop_seconds"]
    write_settings(search_uri, task, began=began)
    history: list[dict[str, Any]] = []

    def commit(status: str, reason: str = "", **more: Any) -> None:
        objective = history[-1]["objective"] if status == "done" else None
        result = {"status": status, "reason": reason, "objective": objective, "history": history, "began": began}
        write_result(search_uri, task, result | {"loop_seconds": round(clock.seconds, 3)} | more)

    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            if workers > 1:
                iterator = climb_together(recipe, task, search_uri, Path(scratch), clock, workers=workers)
            else:
                iterator = climb(recipe, task, search_uri, Path(scratch), clock, start=start)
            for rung in iterator:
                history.append(rung.as_dict())
                if rung.end is not None:
                    commit("done", **rung.end)  # before it is told: whoever hears of it finds it
                else:
                    write_rungs(search_uri, task, history, began=began, loop_seconds=round(clock.seconds, 3))
                if not rung.past:
                    told: dict[str, Any] = {"records": rung.records, "kept": rung.kept, "host": socket.gethostname()}
                    told |= {"loop_seconds": round(clock.seconds, 3)}
                    report({"rung": history[-1], "height": len(history), **told})
    except (ValueError, BadNumbers) as error:
        commit("failed", f"{type(error).__name__}: {error}")
        report({"rung": None, "height": len(history) + 1, "records": []})
