"""Pretrained networks that know no tags become a file of initial weights: `antiphon models import` of such a family.

Does not depend on a project's names of tensors (`workloads/models/official`).
"""

import hashlib
from dataclasses import asdict
from typing import Any

from safetensors.torch import save

from orchestrator.artifacts.weights_file import find_weights, load_weights_file
from orchestrator.storage import object_store
from workloads.models.official.converted import ConvertedEncoder
from workloads.models.official.projects import Source, converter
from workloads.runtime.json_files import json_text
from workloads.runtime.text import name_some

ENDING = ".safetensors"


def check_encoder_options(family: str, out: str, **options: str | None) -> None:
    """ValueError for another ending than that of a file of weights, and for options that are of taggers."""
    if not out.endswith(ENDING):
        raise ValueError(
            f"OUT {out!r}: weights of {family} know no tags, so they become a file for init, no tagger; its name must "
            f"end in {ENDING}"
        )
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name} {value}: is for networks that know tags, not for {family}; leave it out")


def import_encoder(data: bytes, file: str, out: str, *, family: str, source: Source) -> dict[str, Any]:
    """Write the network in `data`, the content of `file`, under our names of tensors to `out`; returns a summary of it.

    Raises ValueError as `import_weights` does.
    """
    base = file.rstrip("/").rsplit("/", 1)[-1]
    module = converter(family)
    found = find_weights(load_weights_file(data, file), module.MARKS, file, source.project)
    try:
        converted: ConvertedEncoder = module.convert(found.state)
    except ValueError as error:
        rest = f"; left over in the file: {name_some(found.left_over)}" if found.left_over else ""
        raise ValueError(f"{base}: {error}{rest}") from None
    weights = {name: tensor.contiguous() for name, tensor in converted.weights.items()}
    object_store.put_bytes(out, save(weights))
    return {
        "weights": out,
        "model": {"arch": asdict(converted.model.arch), "front_end": asdict(converted.model.front_end)},
        "params": sum(tensor.numel() for tensor in weights.values()),
        "dropped": [*converted.dropped, *found.left_over],
        "origin": {
            "project": source.project,
            "family": family,
            "file": base,
            "sha256": hashlib.sha256(data).hexdigest(),
            "licence": source.licence,
        },
    }


def settings_of(imported: dict[str, Any]) -> str:
    """The values of a recipe's model that starts from imported weights, in TOML."""
    arch = ", ".join(f"{key} = {json_text(value)}" for key, value in imported["model"]["arch"].items())
    kind = json_text(imported["model"]["front_end"]["kind"])
    return f"init = {json_text(imported['weights'])}, front_end = {{ kind = {kind} }}, arch = {{ {arch} }}"
