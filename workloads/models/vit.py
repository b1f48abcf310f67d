"""ViT: timm's VisionTransformer of any size (reference/cmkd.md section 2.1).

One channel, square patches that may overlap, a learned position for every patch of the (bands, frames) grid. Also fits
weights of images or of other clip lengths to it. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, C tags, L tokens, D features, P steps in time.
"""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from workloads.config.architectures import ViT
from workloads.models.attention import OnBlock, hook_timm_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import with_frames
from workloads.models.patches import GRID, StridedPatches, adapt_patches, first_patch, mean_over_mel, require_patch_fits

DISTILLED = "dist_token"
HEAD = ("head.weight", "head.bias")


class AudioTransformer(Backbone, VisionTransformer):  # type: ignore[misc]  # our forward takes no attention mask
    """mel_BMF (normalised, of the size the network was built for) to logits_BC.

    The class token stays under `pool = "avg"`, and the last norm comes before pooling, so that both kinds of pooling
    have the same weights. `grid` is stored with the weights: 4 x 49 and 14 x 14 have as many positions.
    """

    has_positions = True
    grid: Tensor

    def __init__(self, arch: ViT, *, bands: int, frames: int, num_classes: int) -> None:
        require_patch_fits(arch.patch, arch.stride, bands=bands, frames=frames)
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
        self.frame_pool = arch.frame_pool
        # floats: code that increments integer buffers or averages running statistics leaves this one unchanged
        self.register_buffer(GRID, torch.tensor(self.patch_embed.grid_size, dtype=torch.float32))

    @property
    def token_layout(self) -> TokenLayout:
        special = self.num_prefix_tokens
        reads_token = self.global_pool == "token" and self.frame_pool == "none"
        read = slice(0, 1) if reads_token else slice(special, None)
        return TokenLayout(special, self.patch_embed.grid_size[0], read)

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_timm_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        return first_patch(self.patch_embed.proj)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        tokens_BLD = self.forward_features(mel_BMF)
        embedding_BD = self.forward_head(tokens_BLD, pre_logits=True)
        sequence_BPD = mean_over_mel(tokens_BLD[:, self.num_prefix_tokens :], self.patch_embed.grid_size)
        return with_frames(Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD), self.head, self.frame_pool)


def build(arch: ViT, *, bands: int, frames: int, num_classes: int) -> AudioTransformer:
    """Build the Transformer for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    return AudioTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: AudioTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a timm ViT or DeiT (distilled too) or one of our own state dicts to the model.

    The distillation token is dropped, and the head is dropped when its number of classes differs. Returns what to load
    and the names dropped. Anything else that does not fit is a ValueError naming it.
    """
    distillation = tuple(name for name in state if name == DISTILLED or name.startswith("head_dist."))
    weights = adapt_patches(state, model.patch_embed.grid_size, num_special=2 if DISTILLED in state else 1, num_kept=1)
    weights = {name: tensor for name, tensor in weights.items() if name not in distillation} | {GRID: model.grid}
    weights, dropped = fit_head(weights, model, head=HEAD, other_classes=other_classes)
    return weights, (*distillation, *dropped)
