"""Weights that the PaSST project published (kkoutini/PaSST, arXiv 2110.05069) in our terms.

The stride follows from the rows of frequency positions, the clips' length from the columns of time positions, which the
project counts as frames over stride: 99, 200 and 300 of stride 10 are 10, 20 and 30 s. Networks over spectra with a hop
other than 10 ms are refused by the name of their file (`stfthop`), since shapes do not tell them apart. Does not depend
on files or tags.
"""

from typing import Literal

from torch import Tensor

from workloads.config.architectures import PaSST
from workloads.config.recipe import FrontEnd, Model
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import build_front_end
from workloads.models.official.converted import Converted, require_distinct_names, rows_or_one
from workloads.models.passt import PATCH, TIME, UNUSED, fit_time, our_name

BANDS, HEAD = "freq_new_pos_embed", "head.1.weight"
TIMES = "time_new_pos_embed"
MARKS = (TIMES,)  # names by which these networks are found in a file
MEL_BANDS, KIND = 128, "efficientat128"
STRIDES: tuple[Literal[10, 12, 14, 16], ...] = (10, 12, 14, 16)
ROWS = {(MEL_BANDS - PATCH) // stride + 1: stride for stride in STRIDES}
SECONDS = (10.0, 20.0, 30.0)  # of the published networks' clips
FRAMES_PER_SECOND = 100
OTHER_HOP = "stfthop"  # in the names of networks over spectra with another hop


def convert(state: dict[str, Tensor]) -> Converted:
    """Convert a state dict of PaSST: depth, stride and clip length follow from shapes; every name and shape is checked.

    DeiT's second head is dropped, and positions of time beyond the last column of a clip. Raises ValueError naming what
    is unknown, missing or of the wrong shape.
    """
    stride = _stride(state)
    seconds = _seconds(_columns(state), stride)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    front_end = build_front_end(KIND, clip_rate=32_000)
    frames, num_classes = front_end.frames(seconds), rows_or_one(state, HEAD)
    model = Model(
        arch=PaSST(family="passt", depth=depth or 1, stride=stride), front_end=FrontEnd(kind="efficientat128")
    )
    dropped = tuple(name for name in state if name.startswith(UNUSED))
    weights = {our_name(name): tensor for name, tensor in state.items() if name not in dropped}
    weights[TIME] = fit_time(weights[TIME], (frames - PATCH) // stride + 1)
    require_fit(weights, empty_backbone(model.arch, bands=MEL_BANDS, frames=frames, num_classes=num_classes))
    require_distinct_names(state, weights, dropped)
    return Converted(model, weights, num_classes, seconds, dropped)


def check_file_name(name: str) -> None:
    """ValueError where a file's name says that its network hears other spectra."""
    if OTHER_HOP in name.lower():
        raise ValueError(
            f"{name}: a network over spectra with another hop ({OTHER_HOP}) than 320 samples, the front "
            f"end {KIND}'s; it cannot be imported"
        )


def _stride(state: dict[str, Tensor]) -> Literal[10, 12, 14, 16]:
    if BANDS not in state or state[BANDS].ndim != 4 or state[BANDS].shape[2] not in ROWS:
        raise ValueError(
            f"{BANDS} is missing or has not {', '.join(map(str, ROWS))} rows, as PaSST's of strides {STRIDES}"
        )
    return ROWS[state[BANDS].shape[2]]


def _columns(state: dict[str, Tensor]) -> int:
    if TIMES not in state or state[TIMES].ndim != 4:
        raise ValueError(f"{TIMES} is missing or has not four axes, which it has in PaSST's networks")
    return state[TIMES].shape[3]


def _seconds(columns: int, stride: int) -> float:
    """The length of clips, of whose frames the last few may fill no column."""
    for seconds in SECONDS:
        frames = seconds * FRAMES_PER_SECOND
        if frames - PATCH < columns * stride <= frames:
            return seconds
    raise ValueError(
        f"{TIMES}: {columns} positions of stride {stride} are {columns * stride / FRAMES_PER_SECOND:g} s; its "
        f"networks are for clips of {', '.join(f'{seconds:g}' for seconds in SECONDS)} s"
    )
