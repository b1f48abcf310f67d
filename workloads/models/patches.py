"""Patches of a mel spectrogram and their positional embeddings, for timm's Transformers.

Axes: B clips, M mel bands, F frames, L tokens, D features; patches lie in R rows (mel) and S columns (time).
"""

import math
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PATCHES = 1_000_000  # each has a position in memory, and attends to all others
STEM, POSITIONS, GRID = "patch_embed.proj.weight", "pos_embed", "grid"


class StridedPatches(PatchEmbed):
    """timm's patch embedding with a configurable stride; what does not fill a patch at the far edge is left out."""

    def __init__(self, *, stride: int, **options: Any) -> None:
        super().__init__(**options)
        self.proj.stride = (stride, stride)
        rows, columns = (
            (side - patch) // stride + 1 for side, patch in zip(self.img_size, self.patch_size, strict=True)
        )
        self.grid_size, self.num_patches = (rows, columns), rows * columns

    def forward(self, mel_BMF: Tensor) -> Tensor:
        return super().forward(mel_BMF.unsqueeze(1))


def require_patch_fits(patch: int, stride: int, *, bands: int, frames: int) -> None:
    """ValueError where the spectrogram is smaller than one patch, or has too many."""
    if min(bands, frames) < patch:
        raise ValueError(
            f"patch = {patch}: must fit the mel spectrogram of {bands} bands x {frames} frames; "
            "use a smaller patch, longer clips or a front end with more bands"
        )
    patches = ((bands - patch) // stride + 1) * ((frames - patch) // stride + 1)
    if patches > MAX_PATCHES:
        raise ValueError(
            f"stride = {stride}: makes {patches:,} patches of the mel spectrogram of {bands} bands x {frames} frames; "
            f"must make at most {MAX_PATCHES:,}: use a longer stride or shorter clips"
        )


def mean_over_mel(patches_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches in the order of (R, S) to one vector per column of time, shape (B, S, D): the mean over the mel axis."""
    return patches_BLD.unflatten(1, grid).mean(1)


def first_patch(projection: nn.Conv2d) -> tuple[float, float]:
    """Where steps of patches are in time (`Backbone.time_steps`): around the middles of the patches."""
    patch, stride = projection.kernel_size[1], projection.stride[1]
    return (patch - stride) / 2, stride


def adapt_patches(
    state: dict[str, Tensor], grid: tuple[int, int], *, num_special: int, num_kept: int
) -> dict[str, Tensor]:
    """The state with its stem summed to one channel and its positions resized to `grid`, as AST does.

    The first `num_special` positions belong to class and distillation tokens, of which the first `num_kept` are kept.
    Along each axis, positions are cropped to the middle or interpolated. A state without `grid` comes from images and
    must be square.
    """
    weights = dict(state)
    if STEM in weights and weights[STEM].ndim == 4:
        weights[STEM] = weights[STEM].sum(dim=1, keepdim=True)
    if POSITIONS in weights and weights[POSITIONS].ndim == 3:
        weights[POSITIONS] = _resize_positions(weights[POSITIONS], state.get(GRID), grid, num_special, num_kept)
    return weights


def _resize_positions(
    positions: Tensor, old_grid: Tensor | None, grid: tuple[int, int], num_special: int, num_kept: int
) -> Tensor:
    """positions (1, num_special + R * S, D) on another grid, behind those of the special tokens that are kept."""
    special, patches = positions[:, :num_special], positions[:, num_special:]
    num_patches = patches.shape[1]
    rows, columns = _square(num_patches, num_special) if old_grid is None else (int(side) for side in old_grid)
    if rows * columns != num_patches:
        raise ValueError(f"{POSITIONS}: {num_patches} patch positions are no {rows} x {columns} grid")
    positions_RSD = patches.reshape(rows, columns, -1)
    for axis, length in enumerate(grid):
        positions_RSD = _resize_axis(positions_RSD, axis, length)
    return torch.cat([special[:, :num_kept], positions_RSD.flatten(0, 1).unsqueeze(0)], dim=1)


def _square(num_patches: int, num_special: int) -> tuple[int, int]:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(
            f"{POSITIONS}: {num_patches} patch positions beside {num_special} special ones are no square; weights "
            f"without {GRID!r} must come from square images"
        )
    return side, side


def _resize_axis(positions_RSD: Tensor, axis: int, length: int) -> Tensor:
    """Crop an axis that is too long to its middle, interpolate one that is too short bilinearly."""
    old_length = positions_RSD.shape[axis]
    if length <= old_length:
        return positions_RSD.narrow(axis, old_length // 2 - length // 2, length)
    size = [length if index == axis else side for index, side in enumerate(positions_RSD.shape[:2])]
    resized = F.interpolate(positions_RSD.permute(2, 0, 1).unsqueeze(0).float(), size=size, mode="bilinear")
    return resized.squeeze(0).permute(1, 2, 0)
