"""The spec that `antiphon cluster render` is given, and the command in it: both checked before anything is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.spec import Spec
from cluster.spec_file import parse_spec, read_spec
from cluster.work_command import option_words
from orchestrator.cli.submitted_command import parsed_command, submitted_command
from workloads.runtime.redaction import require_no_secret


def checked_spec(context: Any, name_or_path: str, kind: str) -> Spec:
    """Load a spec, of another kind if that is not empty, and parse its command as the cluster will.

    `context` is the command line's. Raises ValueError for mistakes in the spec, for secrets in it, and for a command
    that could not run; and the command line's own errors for options that there are not. A recipe that only the image
    has is not looked into.
    """
    values = read_spec(name_or_path)
    _require_no_secret(values)
    spec = parse_spec({**values, **({"kind": kind} if kind else {})})
    work = spec.work
    if work is None:
        return spec
    words = [work.recipe, *option_words(work, spec.cache)]
    if work.recipe.startswith("/") and not Path(work.recipe).is_file():
        parsed_command(context.parent, work.command, words)
    else:
        submitted_command(context.parent, [work.command, *words], work.id, [*spec.env, *spec.secrets])
    return spec


def _require_no_secret(values: Any, path: str = "") -> None:
    """ValueError where a text of the spec holds a secret: manifests are stored and shown."""
    if isinstance(values, str):
        require_no_secret(values, f"{path} =")
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        _require_no_secret(value, f"{path}.{key}" if path else str(key))
