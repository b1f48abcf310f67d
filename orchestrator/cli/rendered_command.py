"""The spec that `antiphon cluster render` is given, and the command in it: both checked before anything is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.spec import Spec, Work
from cluster.spec_file import parse_spec, read_spec
from cluster.work_command import option_words
from orchestrator.cli.submitted_command import parsed_command, submitted_command
from orchestrator.planning.nodes import ray_node
from orchestrator.recipes.loader import load_recipe
from orchestrator.training.worker_count import parse_workers
from orchestrator.training.worker_resources import Node, beside_workers, room_beside, worker_needs
from workloads.runtime.redaction import require_no_secret


def checked_spec(context: Any, name_or_path: str, kind: str) -> Spec:
    """Load a spec, of another kind if that is not empty, and parse its command as the cluster will.

    `context` is the command line's. Raises ValueError for mistakes in the spec, for secrets in it, and for a command
    that could not run there; and the command line's own errors for options that there are not. A recipe that only the
    image has is not looked into.
    """
    values = read_spec(name_or_path)
    _require_no_secret(values)
    spec = parse_spec({**values, **({"kind": kind} if kind else {})})
    work = spec.work
    if work is None:
        return spec
    words = [work.recipe, *option_words(work, spec.cache)]
    _, parameters, _ = parsed_command(context.parent, work.command, words)
    if not work.recipe.startswith("/") or Path(work.recipe).is_file():
        submitted_command(context.parent, [work.command, *words], work.id, [*spec.env, *spec.secrets])
        _require_room(spec, work, parameters)
    return spec


def _require_room(spec: Spec, work: Work, parameters: Mapping[str, Any]) -> None:
    """ValueError where the workers of a run, or of one trial of a search, do not fit into the spec's nodes."""
    if work.command == "teach":  # what its workers take depends on its teachers, which are elsewhere
        return
    recipe, workers = (
        load_recipe(parameters["recipe"], parameters["settings"]),
        parse_workers(str(parameters["workers"])),
    )
    needs, beside = worker_needs(recipe), beside_workers(recipe)
    nodes = [_nodes(spec, "min"), _nodes(spec, "max")]
    always, most = [needs.count(room_beside(each, *beside) if beside else each) for each in nodes]
    if most < workers.least:
        raise ValueError(
            f"work.arguments: --workers {workers}: the groups' max nodes hold {most} of {needs} each at once; raise "
            "cpus, gpus or max of a group, or ask for fewer"
        )
    if always < workers.least and not parameters["wait"]:
        raise ValueError(
            f"work.arguments: --workers {workers}: the groups' min nodes hold {always} of {needs} each at once; raise "
            "min of a group, or add --wait SECONDS, for which the cluster scales up"
        )


def _nodes(spec: Spec, bound: str) -> list[Node]:
    """The nodes that work runs on, by the smaller or larger number of each group."""
    return [node for group in spec.workers.values() for node in [ray_node(group)] * getattr(group, bound)]


def _require_no_secret(values: Any, path: str = "") -> None:
    """ValueError where a text of the spec holds a secret: manifests are stored and shown."""
    if isinstance(values, str):
        require_no_secret(values, f"{path} =")
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        _require_no_secret(value, f"{path}.{key}" if path else str(key))
