"""EAT's ViT, which SSLAM shares: computed positions, norms after the parts of blocks, class token (arXiv 2401.03497).

Positions are sines and cosines of a patch's row and column, so that clips may have any length. Attention and MLP are
timm's. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, C tags, L tokens, D features, P steps in time; patches lie in R rows (mel) and
S columns (time).
"""

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workloads.config.architectures import EAT
from workloads.models.attention import OnBlock, hook_timm_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import with_frames
from workloads.models.patches import first_patch, mean_over_mel, require_patch_fits

PATCH, EPSILON = 16, 1e-6
PERIOD = 10_000  # of the slowest sine, over 2 pi
SIZES = {"base": (768, 12), "large": (1024, 16)}  # dimension, heads
HEAD = ("head.1.weight", "head.1.bias", "head.0.weight", "head.0.bias")


class PostNormBlock(Block):
    """timm's block with its norms after the sums, where they are in the first Transformers."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # timm's takes an attention mask
        x = self.norm1(x + self.drop_path1(self.attn(x)))
        return self.norm2(x + self.drop_path2(self.mlp(x)))


class EfficientTransformer(Backbone):
    """mel_BMF (normalised, of the size the network was built for) to logits_BC, read from the class token."""

    positions_LD: Tensor

    def __init__(self, arch: EAT, *, bands: int, frames: int, num_classes: int) -> None:
        super().__init__()
        dim, heads = SIZES[arch.size]
        norm: Any = partial(nn.LayerNorm, eps=EPSILON)
        self.grid = (bands // PATCH, frames // PATCH)
        self.patches = nn.Conv2d(1, dim, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions_LD", grid_positions(self.grid, dim), persistent=False)
        self.norm_tokens, self.drop = norm(dim), nn.Dropout(arch.dropout)
        self.blocks = nn.Sequential(
            *(
                PostNormBlock(dim, heads, qkv_bias=True, proj_drop=arch.dropout, drop_path=rate, norm_layer=norm)
                for rate in torch.linspace(0, arch.drop_path, arch.depth, device="cpu").tolist()
            )
        )
        self.frame_pool = arch.frame_pool
        self.head = nn.Sequential(norm(dim), nn.Linear(dim, num_classes))
        trunc_normal_(self.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def token_layout(self) -> TokenLayout:
        return TokenLayout(1, self.grid[0], slice(0, 1) if self.frame_pool == "none" else slice(1, None))

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_timm_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        return first_patch(self.patches)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        patches_BLD = self.patches(mel_BMF.unsqueeze(1)).flatten(2).transpose(1, 2) + self.positions_LD
        tokens_BLD = torch.cat([self.token.expand(mel_BMF.shape[0], -1, -1), patches_BLD], dim=1)
        tokens_BLD = self.blocks(self.drop(self.norm_tokens(tokens_BLD)))
        embedding_BD = tokens_BLD[:, 0]
        sequence_BPD = mean_over_mel(tokens_BLD[:, 1:], self.grid)
        return with_frames(Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD), self.head, self.frame_pool)


def grid_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions of patches, shape (R x S, D): half of the features for the row, half for the column."""
    rows, columns = (_sines(torch.arange(length), dim // 2) for length in grid)
    both = [rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)]
    return torch.cat(both, dim=2).flatten(0, 1)


def _sines(places: Tensor, features: int) -> Tensor:
    """Sines and then cosines of places times frequencies between 1 and 1 / PERIOD."""
    exponents = torch.arange(features // 2, dtype=torch.float64, device=places.device) / (features // 2)
    angles = places[:, None].double() * PERIOD**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def build(arch: EAT, *, bands: int, frames: int, num_classes: int) -> EfficientTransformer:
    """Build EAT for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    require_patch_fits(PATCH, PATCH, bands=bands, frames=frames)
    return EfficientTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: EfficientTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit one of our own state dicts, of clips of any length, to the model; the head is dropped when classes differ."""
    return fit_head(dict(state), model, head=HEAD, other_classes=other_classes)
