"""PaSST: a distilled DeiT over overlapping patches, with positions of time and of frequency apart (arXiv 2110.05069).

Its networks are the teachers of EfficientAT (reference/efficientat.md section 4), whose front end is theirs. Patchout,
by which they are trained faster, leaves out patches in training and is not here: a network computes the same without.
Blocks are timm's. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, C tags, L tokens, D features, P steps in time; patches lie in R rows (mel) and
S columns (time).
"""

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from workloads.config.architectures import PaSST
from workloads.models.attention import OnBlock, hook_timm_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import with_frames
from workloads.models.patches import first_patch, mean_over_mel, require_patch_fits

PATCH, DIM, HEADS = 16, 768, 12
SPECIAL = 2  # class and distillation token
TIME = "time"
PUBLISHED_PREFIXES = {  # prefix of a name in the published files -> in ours
    "new_pos_embed": "special",
    "time_new_pos_embed": TIME,
    "freq_new_pos_embed": "bands",
    "patch_embed.proj.": "patches.",
}
HEAD = ("head.1.weight", "head.1.bias", "head.0.weight", "head.0.bias")
UNUSED = "head_dist."  # DeiT's second head, which PaSST keeps but does not use


class PatchoutTransformer(Backbone):
    """mel_BMF (normalised, of the size the network was built for) to logits_BC."""

    has_positions = True

    def __init__(self, arch: PaSST, *, bands: int, frames: int, num_classes: int) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        rows, columns = ((length - PATCH) // arch.stride + 1 for length in (bands, frames))
        self.patches = nn.Conv2d(1, DIM, PATCH, arch.stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.special = nn.Parameter(torch.zeros(1, SPECIAL, DIM))
        self.bands = nn.Parameter(torch.zeros(1, DIM, rows, 1))
        self.time = nn.Parameter(torch.zeros(1, DIM, 1, columns))
        self.drop = nn.Dropout(arch.dropout)
        self.blocks = nn.Sequential(
            *(
                Block(DIM, HEADS, qkv_bias=True, proj_drop=arch.dropout, drop_path=rate, norm_layer=norm)
                for rate in torch.linspace(0, arch.drop_path, arch.depth, device="cpu").tolist()
            )
        )
        self.norm, self.frame_pool = norm(DIM), arch.frame_pool
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, num_classes))
        for parameter in (self.cls_token, self.dist_token, self.special, self.bands, self.time):
            trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def token_layout(self) -> TokenLayout:
        read = slice(0, SPECIAL) if self.frame_pool == "none" else slice(SPECIAL, None)
        return TokenLayout(SPECIAL, self.bands.shape[2], read)

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_timm_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        return first_patch(self.patches)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDRS = self.patches(mel_BMF.unsqueeze(1)) + self.time + self.bands
        special_1LD = torch.cat([self.cls_token, self.dist_token], dim=1) + self.special
        tokens_BLD = torch.cat([special_1LD.expand(mel_BMF.shape[0], -1, -1), x_BDRS.flatten(2).transpose(1, 2)], dim=1)
        tokens_BLD = self.norm(self.blocks(self.drop(tokens_BLD)))
        embedding_BD = tokens_BLD[:, :SPECIAL].mean(1)
        sequence_BPD = mean_over_mel(tokens_BLD[:, SPECIAL:], (x_BDRS.shape[2], x_BDRS.shape[3]))
        return with_frames(Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD), self.head, self.frame_pool)


def build(arch: PaSST, *, bands: int, frames: int, num_classes: int) -> PatchoutTransformer:
    """Build PaSST for exactly `bands` x `frames`; ValueError where a patch does not fit."""
    require_patch_fits(PATCH, arch.stride, bands=bands, frames=frames)
    return PatchoutTransformer(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: PatchoutTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names or the published ones, of any clip length, to the model.

    Of the positions of time the first are taken, as PaSST does for shorter clips; for longer ones they are
    interpolated. The second head is dropped, ours when its classes differ. Returns what to load and the names dropped.
    """
    second_head = tuple(name for name in state if name.startswith(UNUSED))
    weights = {our_name(name): tensor for name, tensor in state.items() if name not in second_head}
    if TIME in weights and weights[TIME].ndim == 4:
        weights[TIME] = fit_time(weights[TIME], model.time.shape[3])
    weights, dropped = fit_head(weights, model, head=HEAD, other_classes=other_classes)
    return weights, (*second_head, *dropped)


def fit_time(time_1D1S: Tensor, columns: int) -> Tensor:
    """Positions of time for another number of columns: the first, or linearly interpolated ones."""
    if columns <= time_1D1S.shape[3]:
        return time_1D1S[..., :columns]
    return F.interpolate(time_1D1S.float(), size=(1, columns), mode="bilinear")


def our_name(name: str) -> str:
    """Our name of a tensor in a published file."""
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in PUBLISHED_PREFIXES.items() if name.startswith(theirs)),
        name,
    )
