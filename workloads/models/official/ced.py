"""Weights that the CED project published (RicherMans/CED, reference/ced.md section 6) in our terms.

Names and shapes of its state dict are all that is used of that project, which is GPL-3.0. How the network pools does
not show in them: the mean over all patches is assumed, as in every network that CED published. CED's ends in a sigmoid,
ours returns the logits before it. Two things differ on purpose: our floor of 120 dB below the loudest cell is per clip,
CED's per batch; and where a clip fills several windows exactly, we process all of them and CED omits the last. Does not
depend on files or tags.
"""

from typing import Literal

import torch
from torch import Tensor

from workloads.config.architectures import CED
from workloads.config.recipe import FrontEnd, Model
from workloads.models.ced import SIZES, our_name
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import CED64, build_front_end
from workloads.models.official.converted import Converted, require_distinct_names, require_heads, rows_or_one

CLIP_SECONDS = 10.0  # AudioSet's clips
STEM, HEAD = "patch_embed.proj.weight", "outputlayer.1.weight"
HUB = "encoder."  # before the network's names in CED's hub form, not before its head's
MARKS = (STEM, HUB + STEM)  # names by which these networks are found in a file: the project's, the hub form's
WIDTHS = {width: size for size, (width, _) in SIZES.items()}


def convert(state: dict[str, Tensor], *, heads: int | None = None) -> Converted:
    """Convert a state dict of CED: its size follows from the embedding's width; every name and shape is checked.

    `heads` is the number of attention heads where a hub folder says it: shapes do not show it.

    Its hub form, `CedForAudioClassification`, has other names and the same network. Front end constants in the state
    must equal ours, and are dropped. Raises ValueError naming what is unknown, missing or of the wrong shape.
    """
    if HUB + STEM in state:
        state = _project_names(state)
    front_end = build_front_end("ced64", clip_rate=16_000)
    assert isinstance(front_end, CED64)
    constants = _require_same_front_end(state, front_end)
    size = _size(state)
    require_heads(heads, SIZES[size])
    model = Model(arch=CED(family="ced", size=size), front_end=FrontEnd(kind="ced64"))
    num_classes, frames = rows_or_one(state, HEAD), front_end.frames(CLIP_SECONDS)
    weights = {our_name(name): tensor for name, tensor in state.items() if name not in constants}
    require_fit(weights, empty_backbone(model.arch, bands=front_end.bands, frames=frames, num_classes=num_classes))
    require_distinct_names(state, weights, constants)
    return Converted(model, weights, num_classes, CLIP_SECONDS, dropped=constants)


def _project_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the hub form in the project's names."""
    renamed = {name.removeprefix(HUB).replace("init_bn.", "init_bn.1.", 1): tensor for name, tensor in state.items()}
    require_distinct_names(state, renamed)
    return renamed


def _require_same_front_end(state: dict[str, Tensor], front_end: CED64) -> tuple[str, ...]:
    """The names of the front end's constants in the state; ValueError where they are not those of `front_end`."""
    ours = {
        "front_end.0.spectrogram.window": front_end.mel.spectrogram.window,
        "front_end.0.mel_scale.fb": front_end.mel.mel_scale.fb,
    }
    for name in ours.keys() & state.keys():
        theirs = state[name].float()
        # a tolerance of a thousandth, because the file may hold half precision
        if theirs.shape != ours[name].shape or not torch.allclose(theirs, ours[name], rtol=0, atol=1e-3):
            raise ValueError(
                f"{name} {tuple(theirs.shape)}: not CED's usual front end (16 kHz, window 512, hop 160, 64 bands up to "
                "8 kHz); a network with another front end cannot be imported"
            )
    return tuple(name for name in state if name in ours)


def _size(state: dict[str, Tensor]) -> Literal["tiny", "mini", "small", "base"]:
    if STEM not in state or state[STEM].ndim != 4:
        raise ValueError(f"{STEM} is missing or has not four axes, which it has in CED's networks")
    width = state[STEM].shape[0]
    if width not in WIDTHS:
        raise ValueError(f"{STEM} is {width} wide: CED's networks are {WIDTHS}")
    return WIDTHS[width]
