"""Weights that the CED project published (RicherMans/CED, reference/ced.md section 6) in our terms.

Names and shapes of its state dict are all that is used of that project, which is GPL-3.0. They do not tell how the
network pools: it is taken to be the mean over all patches, as in every network that CED published. Theirs ends in a
sigmoid, ours gives the logits before it. Two things differ by intention: our floor of 120 dB under the loudest cell is
each clip's own, theirs the batch's; and where a clip fills several windows to the last frame, we hear them all and they
leave out the last. Knows no files and no tags.
"""

from typing import Literal

import torch
from torch import Tensor

from workloads.config.architectures import CED
from workloads.config.recipe import FrontEnd, Model
from workloads.models.ced import our_name
from workloads.models.families import build_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import CED64, build_front_end
from workloads.models.official.converted import Converted

CLIP_SECONDS = 10.0  # AudioSet's clips
STEM, HEAD = "patch_embed.proj.weight", "outputlayer.1.weight"
WIDTHS: dict[int, Literal["tiny", "mini", "small", "base"]] = {192: "tiny", 256: "mini", 384: "small", 768: "base"}


def convert(state: dict[str, Tensor]) -> Converted:
    """Take a state dict of CED, whose size is read off the embedding's width; every name and shape is checked.

    The constants of a front end that the state carries must be ours, and are dropped. Raises ValueError naming what is
    unknown, missing or of the wrong shape.
    """
    front_end = build_front_end("ced64", clip_rate=16_000)
    assert isinstance(front_end, CED64)
    constants = _require_same_front_end(state, front_end)
    model = Model(arch=CED(family="ced", size=_size(state)), front_end=FrontEnd(kind="ced64"))
    num_classes = state[HEAD].shape[0] if HEAD in state and state[HEAD].ndim else 1  # without it the head is missing
    with torch.device("meta"):  # shapes without numbers
        backbone = build_backbone(
            model.arch, bands=front_end.bands, frames=front_end.frames(CLIP_SECONDS), num_classes=num_classes
        )
    weights = {our_name(name): tensor for name, tensor in state.items() if name not in constants}
    require_fit(weights, backbone)
    if len(weights) + len(constants) < len(state):
        raise ValueError("two tensors go by names of the same part: this file is no whole state dict of one network")
    return Converted(model, weights, num_classes, CLIP_SECONDS, dropped=constants)


def _require_same_front_end(state: dict[str, Tensor], front_end: CED64) -> tuple[str, ...]:
    """The names of the front end's constants in the state; ValueError where they are not those of `front_end`."""
    ours = {
        "front_end.0.spectrogram.window": front_end.mel.spectrogram.window,
        "front_end.0.mel_scale.fb": front_end.mel.mel_scale.fb,
    }
    for name in ours.keys() & state.keys():
        theirs = state[name].float()
        # a thousandth: the file may hold half precision
        if theirs.shape != ours[name].shape or not torch.allclose(theirs, ours[name], rtol=0, atol=1e-3):
            raise ValueError(
                f"{name} {tuple(theirs.shape)}: not CED's usual front end (16 kHz, window 512, hop 160, 64 bands up to "
                "8 kHz); a network that hears something else cannot be imported"
            )
    return tuple(name for name in state if name in ours)


def _size(state: dict[str, Tensor]) -> Literal["tiny", "mini", "small", "base"]:
    if STEM not in state or state[STEM].ndim != 4:
        raise ValueError(f"{STEM} is missing or has not four axes: these are no weights of CED's")
    width = state[STEM].shape[0]
    if width not in WIDTHS:
        raise ValueError(f"{STEM} is {width} wide: CED's networks are {WIDTHS}")
    return WIDTHS[width]
