"""Where mel and time are in what timm's networks compute, found by one pass without data.

timm's networks differ in the order of axes, in tokens that stand before those of patches, and in the sizes that they
take. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, D channels, L tokens (special ones first), R rows (mel) and S columns (time).
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64)  # of a token, along both axes, where the network does not say it
SPECIAL = (0, 1, 2)  # tokens before those of patches: class, distillation


class Features(NamedTuple):
    """The layout of a network's last map, and whether its classifier is one linear layer over a vector."""

    axes: Literal["BDRS", "BRSD", "BLD"]
    special: int  # tokens that are no part of the map
    grid: tuple[int, int]  # rows of mel, columns of time
    linear_head: bool = False

    def over_time(self, features: Tensor) -> Tensor:
        """The map as sequence_BSD: its mean over mel."""
        if self.axes == "BDRS":
            return features.mean(2).transpose(1, 2)
        if self.axes == "BRSD":
            return features.mean(1)
        return features[:, self.special :].unflatten(1, self.grid).mean(1)


def find_features(net: Any, size: tuple[int, int], num_classes: int) -> Features:
    """The layout of what `net`, on torch's meta device, computes of `size`: bands and frames.

    Raises ValueError where that is no map over mel and time; whatever the network raises where it does not take `size`.
    """
    with torch.no_grad():
        features = net.eval().forward_features(torch.zeros(1, 1, *size, device="meta"))
        logits, linear_head = _head(net, features)
    if tuple(logits.shape) != (1, num_classes):
        raise ValueError(f"gives logits of shape {tuple(logits.shape)[1:]} for {num_classes} tags")
    found = _layout(net, features, size)
    if found is None:
        shapes = [tuple(part.shape)[1:] for part in ([features] if torch.is_tensor(features) else features)]
        raise ValueError(f"gives features of shape {', '.join(map(str, shapes))}, no map over mel and time")
    return found._replace(linear_head=linear_head)


def _head(net: Any, features: Any) -> tuple[Tensor, bool]:
    """The logits, and whether they are one linear layer's of what timm calls the input of the classifier."""
    classifier, inputs = net.get_classifier(), list[torch.Size]()
    if not isinstance(classifier, nn.Linear):
        return net.forward_head(features), False
    hook = classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].shape))
    logits = net.forward_head(features)
    hook.remove()
    return logits, inputs == [net.forward_head(features, pre_logits=True).shape] and len(inputs[0]) == 2


def _layout(net: Any, features: Any, size: tuple[int, int]) -> Features | None:
    if not torch.is_tensor(features):
        return None
    if features.ndim == 4 and getattr(net, "output_fmt", "") == "NHWC":
        return Features("BRSD", 0, (features.shape[1], features.shape[2]))
    if features.ndim == 4:
        return Features("BDRS", 0, (features.shape[2], features.shape[3]))
    if features.ndim != 3:
        return None
    declared = getattr(net, "num_prefix_tokens", None)
    for special in SPECIAL if declared is None else (declared,):
        grid = _grid(net, features.shape[1] - special, size)
        if grid is not None:
            return Features("BLD", special, grid)
    return None


def _grid(net: Any, patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns in which this number of tokens lies; None where none fit."""
    strides = dict.fromkeys(filter(None, (last_stride(net), *STRIDES)))
    divided = [
        tuple(rounded(length / stride) for length in size) for stride in strides for rounded in (math.floor, math.ceil)
    ]
    for grid in (getattr(getattr(net, "patch_embed", None), "grid_size", None), *divided):
        if grid is not None and patches > 1 and grid[0] * grid[1] == patches:
            return grid[0], grid[1]
    return None


def last_stride(net: Any) -> int | None:
    """Bands and frames of a step of the last map, as timm lists it; None where it does not."""
    listed = getattr(net, "feature_info", None)
    last = listed[-1] if isinstance(listed, list | tuple) and listed else None
    stride = last.get("reduction") if isinstance(last, dict) else None
    return stride if isinstance(stride, int) else None


def first_step(net: nn.Module, stride: int) -> float:
    """The frame with which the first of the steps begins, each `stride` long.

    Padded convolutions place step k around frame k x stride, those of TensorFlow's padding, which pads the far side by
    one more, around its last frame; patches begin at frame 0. The first convolution that has a stride stands for all:
    where a shortcut averages pairs beside it, as in ResNet-D, steps are up to half of one later.
    """
    from timm.layers import Conv2dSame

    strided = next((m for m in net.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1), None)
    if isinstance(strided, Conv2dSame):
        return (stride - 1) / 2
    padded = strided is not None and strided.padding not in ((0, 0), "valid")
    return (1 - stride) / 2 if padded else 0.0
