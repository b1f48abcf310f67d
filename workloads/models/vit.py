"""ViT: timm's VisionTransformer in AST's form (reference/cmkd.md section 2.1).

One channel, square patches that may overlap, a learned position for every patch of the (bands, frames) grid. Also fits
weights of images or of other clip lengths to it. Knows no front end and no training.

Axes: B clips, M mel bands, F frames, C tags; positions are (R rows of the mel axis, T columns of time, D).
"""

import math
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from workloads.config import ViT
from workloads.models.fit import require_fit

STEM, POSITIONS, GRID, DISTILLED = "patch_embed.proj.weight", "pos_embed", "grid", "dist_token"
HEAD = ("head.weight", "head.bias")


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


class AudioTransformer(VisionTransformer):
    """mel_BMF (normalised, of the size it was built for) to logits_BC.

    The class token stays under `pool = "avg"`, and the last norm comes before pooling, so that both pools share
    their weights. `grid` is stored with the weights: the positions alone do not tell 4 x 49 from 14 x 14.
    """

    grid: Tensor

    def __init__(self, arch: ViT, *, bands: int, frames: int, num_classes: int) -> None:
        if min(bands, frames) < arch.patch:
            raise ValueError(
                f"patch = {arch.patch}: must fit the mel spectrogram of {bands} bands x {frames} frames; "
                "use a smaller patch, longer clips or a front end with more bands"
            )
        super().__init__(
            img_size=(bands, frames),
            patch_size=arch.patch,
            in_chans=1,
            num_classes=num_classes,
            global_pool=arch.pool,
            embed_dim=arch.dim,
            depth=arch.depth,
            num_heads=arch.heads,
            fc_norm=False,
            # where the ViT paper has dropout: after adding positions and after every dense layer but qkv
            pos_drop_rate=arch.dropout,
            proj_drop_rate=arch.dropout,
            drop_path_rate=arch.drop_path,
            embed_layer=partial(StridedPatches, stride=arch.stride),
        )
        # floats: whoever counts integer buffers on, or averages running ones, leaves this one as it is
        self.register_buffer(GRID, torch.tensor(self.patch_embed.grid_size, dtype=torch.float32))


def build(arch: ViT, *, bands: int, frames: int, num_classes: int) -> AudioTransformer:
    """Build the Transformer for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    return AudioTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: AudioTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a timm ViT or DeiT (distilled too) or a state dict of ours to the model, as AST does.

    The stem is summed to one channel, positions are cut or stretched per axis, the distillation token goes, and the
    head goes when it tells another number of classes apart. Returns what to load and the names dropped. A state
    without `grid` comes from images and must be square. Anything else that does not fit is a ValueError naming it.
    """
    other_classes |= HEAD[0] in state and len(state[HEAD[0]]) != model.num_classes
    missing_head = HEAD if other_classes else ()
    dropped = tuple(
        name for name in state if name in missing_head or name == DISTILLED or name.startswith("head_dist.")
    )
    weights = {name: tensor for name, tensor in state.items() if name not in dropped}
    if STEM in weights and weights[STEM].ndim == 4:
        weights[STEM] = weights[STEM].sum(dim=1, keepdim=True)
    if POSITIONS in weights and weights[POSITIONS].ndim == 3:
        num_special = 2 if DISTILLED in state else 1
        weights[POSITIONS] = _fit_positions(weights[POSITIONS], num_special, state.get(GRID), model)
    weights[GRID] = model.grid
    require_fit(weights, model, without=missing_head)
    return weights, dropped


def _fit_positions(positions: Tensor, num_special: int, grid: Tensor | None, model: AudioTransformer) -> Tensor:
    """positions (1, special + R * T, D) on the model's grid, behind the class token's own."""
    special, patches = positions[:, :num_special], positions[:, num_special:]
    rows, columns = _square(patches.shape[1], num_special) if grid is None else (int(side) for side in grid)
    if rows * columns != patches.shape[1]:
        raise ValueError(f"{POSITIONS}: {patches.shape[1]} patch positions are no {rows} x {columns} grid")
    positions_RTD = patches.reshape(rows, columns, -1)
    for axis, length in enumerate(model.patch_embed.grid_size):
        positions_RTD = _fit_axis(positions_RTD, axis, length)
    return torch.cat([special[:, :1], positions_RTD.flatten(0, 1).unsqueeze(0)], dim=1)


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
