"""Patches of a mel spectrogram and the positions that belong to them, for timm's Transformers.

Axes: B clips, M mel bands, F frames; positions are (R rows of the mel axis, T columns of time, D).
"""

import math
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor
from torch.nn import functional as F

STEM, POSITIONS, GRID = "patch_embed.proj.weight", "pos_embed", "grid"


class StridedPatches(PatchEmbed):
    """timm's patch embedding with a stride of its own; what does not fill a patch at the far edge is left out."""

    def __init__(self, *, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.proj.stride = (stride, stride)
        rows, columns = (
            (side - patch) // stride + 1 for side, patch in zip(self.img_size, self.patch_size, strict=True)
        )
        self.grid_size, self.num_patches = (rows, columns), rows * columns

    def forward(self, mel_BMF: Tensor) -> Tensor:
        return super().forward(mel_BMF.unsqueeze(1))


def require_room(patch: int, *, bands: int, frames: int) -> None:
    """ValueError where not one patch fits the spectrogram."""
    if min(bands, frames) < patch:
        raise ValueError(
            f"patch = {patch}: must fit the mel spectrogram of {bands} bands x {frames} frames; "
            "use a smaller patch, longer clips or a front end with more bands"
        )


def along_time(patches_BND: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches in the order of (R, T) to one vector per column of time: the mean over the mel axis."""
    return patches_BND.unflatten(1, grid).mean(1)


def of_images(state: dict[str, Tensor], grid: tuple[int, int], *, special: int, keep: int) -> dict[str, Tensor]:
    """The state with its stem summed to one channel and its positions brought to `grid`, as AST does.

    `special` of its positions belong to class and distillation tokens, of which the first `keep` stay. Positions per
    axis are cut from the middle or stretched. A state without `grid` comes from images and must be square.
    """
    weights = dict(state)
    if STEM in weights and weights[STEM].ndim == 4:
        weights[STEM] = weights[STEM].sum(dim=1, keepdim=True)
    if POSITIONS in weights and weights[POSITIONS].ndim == 3:
        weights[POSITIONS] = _fit_positions(weights[POSITIONS], state.get(GRID), grid, special, keep)
    return weights


def _fit_positions(positions: Tensor, have: Tensor | None, grid: tuple[int, int], special: int, keep: int) -> Tensor:
    """positions (1, special + R * T, D) on another grid, behind those of the special tokens that stay."""
    first, patches = positions[:, :special], positions[:, special:]
    rows, columns = _square(patches.shape[1], special) if have is None else (int(side) for side in have)
    if rows * columns != patches.shape[1]:
        raise ValueError(f"{POSITIONS}: {patches.shape[1]} patch positions are no {rows} x {columns} grid")
    positions_RTD = patches.reshape(rows, columns, -1)
    for axis, length in enumerate(grid):
        positions_RTD = _fit_axis(positions_RTD, axis, length)
    return torch.cat([first[:, :keep], positions_RTD.flatten(0, 1).unsqueeze(0)], dim=1)


def _square(num_patches: int, num_special: int) -> tuple[int, int]:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(
            f"{POSITIONS}: {num_patches} patch positions beside {num_special} special ones are no square; weights "
            f"without {GRID!r} must come from square images"
        )
    return side, side


def _fit_axis(positions_RTD: Tensor, axis: int, length: int) -> Tensor:
    """Cut the middle out of an axis that is too long, stretch one that is too short bilinearly."""
    have = positions_RTD.shape[axis]
    if length <= have:
        return positions_RTD.narrow(axis, have // 2 - length // 2, length)
    size = [length if index == axis else side for index, side in enumerate(positions_RTD.shape[:2])]
    stretched = F.interpolate(positions_RTD.permute(2, 0, 1).unsqueeze(0).float(), size=size, mode="bilinear")
    return stretched.squeeze(0).permute(1, 2, 0)
