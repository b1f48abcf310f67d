"""AST: the Audio Spectrogram Transformer, a distilled DeiT over overlapping patches (reference/cmkd.md section 2.1).

Blocks and tokens are timm's; AST adds the stride of the patches and a head that reads the mean of the class and the
distillation token. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, C tags, L tokens, D features, P steps in time.
"""

from functools import partial
from typing import Literal

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workloads.config.architectures import AST
from workloads.models.attention import OnBlock, hook_timm_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import with_frames
from workloads.models.patches import GRID, StridedPatches, adapt_patches, first_patch, mean_over_mel, require_patch_fits

PATCH, DEPTH = 16, 12
SIZES: dict[Literal["tiny", "small", "base"], tuple[int, int]] = {  # DeiT's: dimension, heads
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
}
HEAD = ("mlp_head.1.weight", "mlp_head.1.bias", "mlp_head.0.weight", "mlp_head.0.bias")
IMAGE_HEADS = ("head.", "head_dist.")


class SpectrogramTransformer(Backbone, VisionTransformerDistilled):  # type: ignore[misc]  # our forward takes no attention mask
    """mel_BMF (normalised, of the size the network was built for) to logits_BC; `grid` as in `vit.py`."""

    has_positions = True
    grid: Tensor

    def __init__(self, arch: AST, *, bands: int, frames: int, num_classes: int) -> None:
        require_patch_fits(PATCH, arch.stride, bands=bands, frames=frames)
        dim, heads = SIZES[arch.size]
        super().__init__(
            img_size=(bands, frames),
            patch_size=PATCH,
            in_chans=1,
            num_classes=0,  # DeiT has two heads; AST has one over both tokens
            embed_dim=dim,
            depth=DEPTH,
            num_heads=heads,
            pos_drop_rate=arch.dropout,
            proj_drop_rate=arch.dropout,
            drop_path_rate=arch.drop_path,
            embed_layer=partial(StridedPatches, stride=arch.stride),
        )
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        self.frame_pool = arch.frame_pool
        self.register_buffer(GRID, torch.tensor(self.patch_embed.grid_size, dtype=torch.float32))

    @property
    def token_layout(self) -> TokenLayout:
        return TokenLayout(
            2, self.patch_embed.grid_size[0], slice(0, 2) if self.frame_pool == "none" else slice(2, None)
        )

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_timm_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        return first_patch(self.patch_embed.proj)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        tokens_BLD = self.forward_features(mel_BMF)
        embedding_BD = tokens_BLD[:, :2].mean(1)
        sequence_BPD = mean_over_mel(tokens_BLD[:, 2:], self.patch_embed.grid_size)
        outputs = Outputs(self.mlp_head(embedding_BD), embedding_BD, sequence_BPD)
        return with_frames(outputs, self.mlp_head, self.frame_pool)


def build(arch: AST, *, bands: int, frames: int, num_classes: int) -> SpectrogramTransformer:
    """Build AST for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    return SpectrogramTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: SpectrogramTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit timm's distilled DeiT (ImageNet) or one of our own state dicts, of any clip length, to the model.

    DeiT's two heads are dropped; our head is dropped when its number of classes differs. Returns what to load and the
    names dropped. Anything else that does not fit is a ValueError naming it.
    """
    image_heads = tuple(name for name in state if name.startswith(IMAGE_HEADS))
    weights = adapt_patches(state, model.patch_embed.grid_size, num_special=2, num_kept=2)
    weights = {name: tensor for name, tensor in weights.items() if name not in image_heads} | {GRID: model.grid}
    weights, dropped = fit_head(weights, model, head=HEAD, other_classes=other_classes)
    return weights, (*image_heads, *dropped)
