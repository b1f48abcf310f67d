"""ViT: timm's VisionTransformer of any size (reference/cmkd.md section 2.1).

One channel, square patches that may overlap, a learned position for every patch of the (bands, frames) grid. Also fits
weights of images or of other clip lengths to it. Knows no front end and no training.

Axes: B clips, M mel bands, F frames, C tags, N tokens, D features.
"""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from workloads.config.architectures import ViT
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head
from workloads.models.patches import GRID, StridedPatches, along_time, of_images, require_room

DISTILLED = "dist_token"
HEAD = ("head.weight", "head.bias")


class AudioTransformer(Backbone, VisionTransformer):  # type: ignore[misc]  # our forward takes no attention mask
    """mel_BMF (normalised, of the size it was built for) to logits_BC.

    The class token stays under `pool = "avg"`, and the last norm comes before pooling, so that both pools share
    their weights. `grid` is stored with the weights: the positions alone do not tell 4 x 49 from 14 x 14.
    """

    grid: Tensor

    def __init__(self, arch: ViT, *, bands: int, frames: int, num_classes: int) -> None:
        require_room(arch.patch, bands=bands, frames=frames)
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

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        tokens_BND = self.forward_features(mel_BMF)
        embedding_BD = self.forward_head(tokens_BND, pre_logits=True)
        sequence_BPD = along_time(tokens_BND[:, self.num_prefix_tokens :], self.patch_embed.grid_size)
        return Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD)


def build(arch: ViT, *, bands: int, frames: int, num_classes: int) -> AudioTransformer:
    """Build the Transformer for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    return AudioTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: AudioTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a timm ViT or DeiT (distilled too) or a state dict of ours to the model.

    The distillation token goes, and the head goes when it tells another number of classes apart. Returns what to load
    and the names dropped. Anything else that does not fit is a ValueError naming it.
    """
    foreign = tuple(name for name in state if name == DISTILLED or name.startswith("head_dist."))
    weights = of_images(state, model.patch_embed.grid_size, special=2 if DISTILLED in state else 1, keep=1)
    weights = {name: tensor for name, tensor in weights.items() if name not in foreign} | {GRID: model.grid}
    weights, dropped = fit_head(weights, model, head=HEAD, other_classes=other_classes)
    return weights, (*foreign, *dropped)
