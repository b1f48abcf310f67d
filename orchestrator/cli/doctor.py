"""`antiphon doctor`: whether a machine or a cluster can do what a run needs. Parses and prints."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import (
    FAILED,
    AddressOption,
    JsonOption,
    SetOption,
    TrackingOption,
    cluster_address,
    only_json,
)
from orchestrator.cli.printing import cell
from orchestrator.tracking.uri import NONE

if TYPE_CHECKING:
    from workloads.config.recipe import Recipe

STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    recipe: Annotated[str, typer.Argument(help="A recipe, whose data, cache and device are looked at too.")] = "",
    settings: SetOption = None,
    storage: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix that is to be written.")] = "",
    tracking: TrackingOption = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Look at this machine, or at every node of a Ray cluster, and say what to mend. Exit code 1: a problem."""
    from orchestrator.doctor.examine import examine
    from orchestrator.doctor.node_facts import Subject
    from orchestrator.training.request import refuse_ray_client
    from workloads.runtime.redaction import require_no_secret

    require_no_secret(storage, "--storage")
    where = cluster_address(address)
    refuse_ray_client(where)
    loaded = _recipe(recipe, settings)
    subject = Subject(
        storage=_absolute(storage),
        tracking="" if tracking == NONE else tracking,
        data_root=loaded.data.root if loaded else "",
        cache=loaded.data.cache if loaded else "",
        gpus=loaded is not None and loaded.train.device == "cuda",
    )
    with only_json(as_json) as emit:
        found = examine(subject, address=where, cache_gb=loaded.data.cache_gb if loaded else 0.0)
        emit({"findings": [asdict(finding) for finding in found]})
        if not as_json:
            table = Table("check", "", "found", "what to do")
            for finding in found:
                level = cell(finding.level)
                level.stylize(STYLES[finding.level])
                table.add_row(finding.check, level, cell(finding.said), cell(finding.fix))
            Console().print(table)
    if any(finding.level == "problem" for finding in found):
        raise typer.Exit(FAILED)


def _recipe(name: str, settings: list[str] | None) -> "Recipe | None":
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.training.request import with_absolute_paths

    if not name:
        if settings:
            raise ValueError(f"--set {settings[0]}: changes a recipe; name one, or leave it out")
        return None
    return with_absolute_paths(load_recipe(name, settings))


def _absolute(uri: str) -> str:
    from orchestrator.storage import object_store

    return str(object_store.local_path(uri)) if uri and object_store.is_local(uri) else uri
