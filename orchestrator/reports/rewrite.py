"""The report of a run or a search, written anew from what its folder or URI holds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.reports.run_page import write_report
from orchestrator.runs.records import records_of
from orchestrator.storage import object_store

if TYPE_CHECKING:
    pass


def rewrite_report(run: str, out: str) -> str:
    """Write the report of a run or a search, finished or not, from what its folder or URI holds; returns the path."""
    if object_store.exists(object_store.join(run, "search.json")):
        return _search_report(run, out)
    recipe_uri = object_store.join(run, "recipe.json")
    if not object_store.exists(recipe_uri):
        raise ValueError(f"run {run!r}: no recipe.json there; give a run's or a search's folder or URI, STORAGE/ID")
    records = records_of(run)
    if not records:
        raise ValueError(f"run {run!r}: has no records there yet; they come with the first checkpoint")
    run_id = run.rstrip("/").rsplit("/", 1)[-1]
    starts = [record for record in records if record["kind"] == "run"]
    command = starts[0]["tags"]["command"] if starts else f"antiphon run RECIPE --resume {run_id}"
    target = Path(out or f"{run_id}.html")
    recipe = json.loads(object_store.get_text(recipe_uri))
    write_report(records, recipe, run_id=run_id, command=command, out=target)
    return str(target.resolve())


def _search_report(uri: str, out: str) -> str:
    from orchestrator.reports.search.page import write_search_report
    from orchestrator.reports.search.snapshot import read_search

    search = read_search(uri)
    target = Path(out or f"{search.search_id}.html")
    write_search_report(search, target)
    return str(target.resolve())
