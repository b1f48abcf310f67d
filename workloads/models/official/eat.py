"""Weights of EAT (cwx-worst-one/EAT) and SSLAM (ta012/SSLAM) that were tuned to tags, in our terms (arXiv 2401.03497).

Both have one architecture, in two forms: fairseq's, and that of their hub folders. Their spectra lie with time upwards,
so that the kernels of patches are turned. Positions are computed; those in a file are compared and dropped. Networks
that read the class token, have a norm before their head and hear spectra as AudioSet's recipes normalise them are
assumed, as all that were published do. Does not depend on files or tags.
"""

import re
from typing import Literal

import torch
from torch import Tensor

from workloads.config.architectures import EAT
from workloads.config.recipe import FrontEnd, Model
from workloads.models.eat import PATCH, SIZES, grid_positions
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.official.converted import Converted, require_distinct_names, require_heads, rows_or_one

FAIRSEQ, HUB = "model.modality_encoders.IMAGE.", "model."
STEM = "local_encoder.proj.weight"
MARKS = (FAIRSEQ + STEM, HUB + STEM)  # names by which these networks are found in a file
NAMES = {  # of a tensor, or the beginning of its name, without what precedes it -> ours
    "local_encoder.proj.": "patches.",
    "extra_tokens": "token",
    "fixed_positional_encoder.positions": "positions",
    "context_encoder.norm.": "norm_tokens.",
    "pre_norm.": "norm_tokens.",
    "fc_norm.": "head.0.",
    "head.": "head.1.",
}
POSITIONS, PATCHES, HEAD = "positions", "patches.weight", "head.1.weight"
BANDS, FRAMES, CLIP_SECONDS = 128, 1024, 10.0
ROWS = BANDS // PATCH
MEAN, STD = -4.268, 2 * 4.569
WIDTHS: dict[int, Literal["base", "large"]] = {768: "base", 1024: "large"}


def convert(state: dict[str, Tensor], *, heads: int | None = None) -> Converted:
    """Convert a state dict of EAT or SSLAM in either form: size and depth follow from shapes, all names are checked.

    `heads` is the number of attention heads where a hub folder says it: shapes do not show it.

    Raises ValueError naming what is unknown, missing or of the wrong shape, and for positions other than the computed.
    """
    weights = {_our_name(name): tensor for name, tensor in state.items()}
    size = _size(weights)
    require_heads(heads, SIZES[size])
    dropped = tuple(name for name in state if _our_name(name) == POSITIONS)
    if dropped:
        _require_computed(weights.pop(POSITIONS), size)
    weights[PATCHES] = weights[PATCHES].transpose(2, 3)
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    num_classes = rows_or_one(weights, HEAD)
    front_end = FrontEnd(kind="kaldi128", frames=FRAMES, mean=MEAN, std=STD)
    model = Model(arch=EAT(family="eat", size=size, depth=depth or 1), front_end=front_end)
    require_fit(weights, empty_backbone(model.arch, bands=BANDS, frames=FRAMES, num_classes=num_classes))
    require_distinct_names(state, weights, dropped)
    return Converted(model, weights, num_classes, CLIP_SECONDS, dropped)


def _our_name(name: str) -> str:
    inner = re.sub(f"^({re.escape(FAIRSEQ)}|{re.escape(HUB)})", "", name)
    return next(
        (ours + inner.removeprefix(theirs) for theirs, ours in NAMES.items() if inner.startswith(theirs)), inner
    )


def _size(weights: dict[str, Tensor]) -> Literal["base", "large"]:
    stem = weights.get(PATCHES)
    if stem is None or stem.ndim != 4 or stem.shape[0] not in WIDTHS:
        raise ValueError(f"{STEM} is missing or not four axes of {', '.join(map(str, WIDTHS))} rows, as EAT's is")
    return WIDTHS[stem.shape[0]]


def _require_computed(positions_1LD: Tensor, size: str) -> None:
    """ValueError where stored positions, in the order of columns and then rows, are not those that are computed."""
    dim, columns = SIZES[size][0], positions_1LD.shape[1] // ROWS if positions_1LD.ndim == 3 else 0
    ours = grid_positions((ROWS, columns), dim).unflatten(0, (ROWS, columns)).transpose(0, 1).flatten(0, 1)
    if positions_1LD.shape != (1, *ours.shape) or not torch.allclose(positions_1LD[0].float(), ours, atol=2e-3):
        raise ValueError(
            f"{POSITIONS} {tuple(positions_1LD.shape)}: not the sines of {ROWS} rows of patches, as EAT's are"
        )
