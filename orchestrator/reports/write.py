"""Where reports are written: beside a run or search that has just ended, or again from what its folder or URI holds.

The command line calls it after the outcome is written: a report that fails changes nothing of a run or search. What a
run's report does not need, Optuna above all, is imported for searches only.
"""

from pathlib import Path
from typing import Any

from orchestrator.reports.run_page import write_report
from orchestrator.reports.run_shapes import RECORDS, RecipeFile, TimedRecord
from orchestrator.runs.location import RunLocation
from orchestrator.runs.records import records_of
from orchestrator.search.store import upload_beside
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.tracking.nested_runs import RUN_PATHS_FILE
from orchestrator.tracking.record_mapping import REPORT_FILE
from orchestrator.tracking.replayer import send_report
from workloads.runtime.atomic_files import require_folder_for
from workloads.runtime.event_log import EVENT_LOG, read_event_log
from workloads.runtime.json_files import require_shape


def write_run_report(location: RunLocation, *, patience_s: float, resumable: bool = False) -> None:
    """Write the report of a run that this process has driven, from its event log: beside it, and to its storage.

    Retries for at most `patience_s` seconds while the storage is unavailable. To the run's MLflow too, unless it is to
    go on: a driver that was told to stop has no time for that.
    """
    recipe_uri = object_store.join(location.uri, "recipe.json")
    recipe = retry_while_unavailable(
        lambda: object_store.read_json(recipe_uri, RecipeFile), what=recipe_uri, patience_s=patience_s
    )
    out = location.folder / REPORT_FILE
    write_report(read_event_log(location.event_log), recipe, run_id=location.run_id, uri=location.uri, out=out)
    retry_while_unavailable(lambda: upload_beside(location.uri, out), what=location.uri, patience_s=patience_s)
    if not resumable:
        send_report(location.event_log, location.tracking, out)


def write_search_page(location: RunLocation) -> None:
    """Write the page of a search that this process has driven: beside its files, to its storage, and to its MLflow.

    The replayer's file of MLflow runs goes to the storage before, for the page's links.
    """
    from orchestrator.reports.search.page import write_search_report
    from orchestrator.reports.search.snapshot import read_search

    upload_beside(location.uri, location.folder / RUN_PATHS_FILE)
    out = location.folder / REPORT_FILE
    write_search_report(read_search(location.uri), out)
    upload_beside(location.uri, out)
    send_report(location.event_log, location.tracking, out)


def write_study_report(location: RunLocation, outcome: dict[str, Any]) -> str:
    """Write the page of a study that this process has driven: beside its files, and to its storage; returns its URI."""
    from orchestrator.reports.study_page import write_study_page

    out = location.folder / REPORT_FILE
    location.folder.mkdir(parents=True, exist_ok=True)
    write_study_page(outcome, out)
    upload_beside(location.uri, out)
    return object_store.join(location.uri, REPORT_FILE)


def rewrite_report(uri: str, out: str, *, audio: bool = True) -> str:
    """Write the report of a run, a search or a study, finished or not, from what its folder or URI holds; returns the
    path.

    `out` is empty for ./ID.html; `audio` says whether a run's may play clips. Raises ValueError where there is no run
    with records, no search and no study, and where no file can be written at `out`.
    """
    if out:
        require_folder_for(Path(out), "--out")
    if object_store.exists(object_store.join(uri, "study.json")):
        from orchestrator.reports.study_page import write_study_page
        from orchestrator.study.results import outcome_so_far

        target = Path(out or f"{_folder_name(uri)}.html")
        write_study_page(outcome_so_far(_absolute(uri)), target)
        return str(target.resolve())
    if object_store.exists(object_store.join(uri, "search.json")):
        from orchestrator.reports.search.page import write_search_report
        from orchestrator.reports.search.snapshot import read_search

        search = read_search(uri)
        target = Path(out or f"{_folder_name(uri)}.html")
        write_search_report(search, target)
        return str(target.resolve())
    return str(_rewrite_run_report(uri, out, audio=audio).resolve())


def _rewrite_run_report(uri: str, out: str, *, audio: bool) -> Path:
    recipe_uri = object_store.join(uri, "recipe.json")
    if not object_store.exists(recipe_uri):
        raise ValueError(f"run {uri!r}: no recipe.json there; give a run's or a search's folder or URI, STORAGE/ID")
    records = records_of(uri)
    if not records:
        raise ValueError(f"run {uri!r}: no records yet; the first checkpoint brings them, so try again after it")
    for record in records:
        _require_readable(record, f"{object_store.join(uri, EVENT_LOG)}: a record of kind {record['kind']}")
    if not audio:
        records = [record for record in records if record["kind"] != "mistakes"]
    run_id = _folder_name(uri)
    target = Path(out or f"{run_id}.html")
    recipe = object_store.read_json(recipe_uri, RecipeFile)
    write_report(records, recipe, run_id=run_id, uri=uri, out=target)
    return target


def _require_readable(record: dict[str, Any], name: str) -> None:
    """ValueError where a record, which any program may have written, is not what the report reads."""
    require_shape(record, name, TimedRecord)
    require_shape(record, name, RECORDS.get(record["kind"], TimedRecord))
    if record["kind"] == "profiles":
        for model, heard in record["models"].items():
            if len(heard["clips"]) != len(record["clips"]):
                raise ValueError(
                    f"{name}: models.{model}: profiles of {len(heard['clips'])} clips, and {len(record['clips'])} are "
                    "shown; it was damaged or written by something else"
                )
    if record["kind"] != "data":
        return
    for key in ("clips_per_tag", "known_per_tag"):
        for part, counts in (record.get(key) or {}).items():
            if len(counts) != len(record["tags"]):
                raise ValueError(
                    f"{name}: {key}.{part}: {len(counts)} counts for {len(record['tags'])} tags; it was damaged or "
                    "written by something else"
                )


def _absolute(uri: str) -> str:
    return str(object_store.local_path(uri)) if object_store.is_local(uri) else uri


def _folder_name(uri: str) -> str:
    """The id of a run or search: its folder's name, not what a file in it says, which could be any path."""
    return object_store.local_path(uri).name if object_store.is_local(uri) else uri.rstrip("/").rsplit("/", 1)[-1]
