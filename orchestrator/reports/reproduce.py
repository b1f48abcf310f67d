"""The shell commands that repeat a run or a search from any folder, whatever was typed: from the resolved recipe."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from orchestrator.storage import object_store
from orchestrator.tracking.uri import VARIABLE
from workloads.runtime.redaction import REDACTED, redacted


def repeat_run(uri: str, run_id: str, recipe: Mapping[str, Any], tags: Mapping[str, str]) -> list[str]:
    """The commands that repeat the run at `uri`, whose `run` record has these tags.

    A run in a folder has its recipe beside it; a run on an object store does not, so its recipe is written first.
    """
    if object_store.is_local(uri):
        path = object_store.join(str(object_store.local_path(uri)), "recipe.json")
        return [_command("run", path, tags)]
    return _with_recipe("run", run_id, recipe, tags)


def repeat_search(search_id: str, recipe: Mapping[str, Any], tags: Mapping[str, str]) -> list[str]:
    """The commands that repeat a search; `tags` are its `command` as typed and its `options`."""
    return _with_recipe("search", search_id, recipe, tags)


def what_to_set(tracking: str) -> str:
    """What the commands need beside them: a tracking URI with a secret, which is not stored; empty for another."""
    shown = redacted(tracking)
    return f"First set {VARIABLE} to {shown} with its secret, which is not stored." if REDACTED in shown else ""


def _with_recipe(verb: str, name: str, recipe: Mapping[str, Any], tags: Mapping[str, str]) -> list[str]:
    file = f"{name}.recipe.json"
    write = f"printf %s {shlex.quote(json.dumps(recipe))} > {shlex.quote(file)}"
    return [write, _command(verb, file, tags)]


def _command(verb: str, recipe: str, tags: Mapping[str, str]) -> str:
    """The program that was typed, this recipe, and the options that decide where and how it ran."""
    program = _program(tags.get("command", ""))
    return " ".join([shlex.join([program, verb, recipe]), tags.get("options", "")]).strip()


def _program(command: str) -> str:
    """The first word of a command; `antiphon` where it is none that a shell would take: another program wrote it."""
    try:
        return next(iter(shlex.split(command)), "antiphon")
    except ValueError:  # a quote that is never closed
        return "antiphon"
