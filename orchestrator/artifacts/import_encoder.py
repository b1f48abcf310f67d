"""Pretrained networks that know no tags become a file of initial weights: `antiphon models import` of such a family.

Does not depend on a project's names of tensors (`workloads/models/official`).
"""

from dataclasses import asdict
from typing import Any

from safetensors.torch import save

from orchestrator.artifacts.weights_file import FoundWeights
from orchestrator.storage import object_store
from workloads.models.official.converted import ConvertedEncoder
from workloads.models.official.projects import converter
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


def import_encoder(found: FoundWeights, out: str, *, family: str, origin: dict[str, str]) -> dict[str, Any]:
    """Write the network that was found in a file under our names of tensors to `out`; returns a summary of it.

    Raises ValueError as `import_weights` does.
    """
    try:
        converted: ConvertedEncoder = converter(family).convert(found.state)
    except ValueError as error:
        rest = f"; left over in the file: {name_some(found.left_over)}" if found.left_over else ""
        raise ValueError(f"{origin['file']}: {error}{rest}") from None
    weights = {name: tensor.contiguous() for name, tensor in converted.weights.items()}
    object_store.put_bytes(out, save(weights))
    return {
        "weights": out,
        "model": {"arch": asdict(converted.model.arch), "front_end": asdict(converted.model.front_end)},
        "params": sum(tensor.numel() for tensor in weights.values()),
        "dropped": [*converted.dropped, *found.left_over],
        "origin": origin,
    }


def settings_of(imported: dict[str, Any]) -> str:
    """The values of a recipe's model that starts from imported weights, in TOML."""
    arch = ", ".join(f"{key} = {json_text(value)}" for key, value in imported["model"]["arch"].items())
    kind = json_text(imported["model"]["front_end"]["kind"])
    return f"init = {json_text(imported['weights'])}, front_end = {{ kind = {kind} }}, arch = {{ {arch} }}"
