"""Folders that `antiphon export --to hub` wrote with code of ours become the tagger that they were made of.

Their weights have our names already. Their code is not run: config.json says what builds the tagger.
"""

import hashlib
from typing import Any

import torch

from orchestrator.artifacts.hub_folder import HubFolder
from orchestrator.artifacts.weights_file import load_weights_file, read_file
from orchestrator.storage import published_folders
from workloads.config.recipe import MODEL_NAME, Model, restore
from workloads.evaluate.predict import load_tagger
from workloads.models.official.hub_config import own_state
from workloads.runtime import checkpoint
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.tensor_files import require_stored
from workloads.runtime.version import VERSION

WEIGHTS = "backbone."  # other tensors are constants of the front end, which are computed


def import_own(folder: HubFolder, out: str, *, family: str | None, **options: str | None) -> dict[str, Any]:
    """Write the tagger of such a folder at `out`; returns a summary of it, as `import_weights` does.

    Raises ValueError for options that config.json answers, and where weights do not fit what it says.
    """
    state, name = own_state(folder.config), options.pop("name")
    known = state["model"]["arch"].get("family")
    if family not in (None, known):
        raise ValueError(f"--family {family}: config.json in {folder.name!r} says that it is {known}")
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"--{option} {value}: config.json in {folder.name!r} says it; leave it out")
    state["name"] = name or state["name"]
    if not MODEL_NAME.fullmatch(state["name"]):
        raise ValueError(f"--name {state['name']!r}: a name is a small letter, then small letters, digits or _")
    restore(Model, state["model"])
    data = read_file(folder.weights, "weights")
    tensors = load_weights_file(data, folder.weights)
    require_stored(tensors, f"weights {folder.weights!r}")
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(WEIGHTS)}
    bad = [key for key, tensor in weights.items() if not torch.as_tensor(tensor).isfinite().all()]
    if bad:
        raise ValueError(f"weights {folder.weights!r}: {bad[0]} holds numbers that are not finite; use another file")
    base = folder.weights.rsplit("/", 1)[-1]
    where = {"project": folder.name, "family": known, "file": base, "sha256": hashlib.sha256(data).hexdigest()}
    state["origin"] = where | {"licence": folder.licence, "imported_with": f"antiphon {VERSION}"}
    with scratch_folder() as scratch:
        written = checkpoint.write(scratch / "tagger", tensors={"weights": weights}, state=state)
        tagger, _ = load_tagger(written, folder.name)  # raises where weights and settings do not fit
        uri = published_folders.publish(written, out)
    return {
        "checkpoint": uri,
        "name": state["name"],
        "model": state["model"],
        "tags": len(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "params": tagger.num_parameters,
        "dropped": [],
        "origin": state["origin"],
    }
