"""CED: a plain ViT over few, large mel bands, for clips of any length (reference/ced.md section 6).

What is specific to CED is written here: batch norm over the mel bands instead of a data set's mean, positional
embeddings of time and of frequency that are added, the mean over all patches, and windows for clips longer than its
positions. Blocks are timm's. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, C tags, L tokens, D features, P steps in time; patches lie in R rows (mel) and
S columns (time).
"""

from functools import partial
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from workloads.config.architectures import CED
from workloads.models.attention import OnBlock, hook_timm_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import with_frames
from workloads.models.patches import mean_over_mel, require_patch_fits

PATCH, DEPTH = 16, 12
WINDOW = 1012  # frames that the positions cover: slightly more than 10 s
SIZES: dict[Literal["tiny", "mini", "small", "base"], tuple[int, int]] = {  # dimension, heads
    "tiny": (192, 3),
    "mini": (256, 4),
    "small": (384, 6),
    "base": (768, 12),
}
PUBLISHED_PREFIXES = {  # prefix of a name in the published files -> in ours
    "init_bn.1.": "norm_mel.",
    "patch_embed.proj.": "patches.",
    "time_pos_embed": "time",
    "freq_pos_embed": "bands",
    "outputlayer.": "head.",
}
HEAD = ("head.1.weight", "head.1.bias", "head.0.weight", "head.0.bias")


class ConsistentTransformer(Backbone):
    """mel_BMF (in decibels, any length) to logits_BC; clips longer than a window are processed window by window.

    The last window is padded with zeros after the batch norm; logits and embeddings are averaged over the windows.
    """

    def __init__(self, arch: CED, *, bands: int, num_classes: int) -> None:
        super().__init__()
        dim, heads = SIZES[arch.size]
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.norm_mel = nn.BatchNorm1d(bands, momentum=0.01)
        self.patches = nn.Conv2d(1, dim, PATCH, PATCH)
        self.time = nn.Parameter(torch.randn(1, dim, 1, WINDOW // PATCH) * 0.02)
        self.bands = nn.Parameter(torch.randn(1, dim, bands // PATCH, 1) * 0.02)
        self.drop = nn.Dropout(arch.dropout)
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, qkv_bias=True, proj_drop=arch.dropout, drop_path=rate, norm_layer=norm)
                for rate in torch.linspace(0, arch.drop_path, DEPTH, device="cpu").tolist()
            )
        )
        self.norm, self.frame_pool = norm(dim), arch.frame_pool
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def token_layout(self) -> TokenLayout:
        return TokenLayout(0, self.bands.shape[2], slice(None))

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_timm_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        """Of several windows the frames that fill no patch at the end of each are shared out among its steps."""
        return 0.0, PATCH if frames <= WINDOW else WINDOW / self.time.shape[3]

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        frames = mel_BMF.shape[2]
        mel_BMF = self.norm_mel(mel_BMF)
        num_windows = max(1, -(-frames // WINDOW))
        if num_windows == 1:
            return with_frames(self._window(mel_BMF), self.head, self.frame_pool)
        padded_BMF = F.pad(mel_BMF, (0, num_windows * WINDOW - frames))
        stacked = self._window(torch.cat(padded_BMF.split(WINDOW, dim=2)))[:3]
        # the windows first: (num_windows, B, ...)
        logits, embedding, sequence = (part.unflatten(0, (num_windows, -1)) for part in stacked)
        sequence_BPD = torch.cat(sequence.unbind(0), dim=1)
        steps = (num_windows - 1) * self.time.shape[3] + -(-(frames - (num_windows - 1) * WINDOW) // PATCH)
        outputs = Outputs(logits.mean(0), embedding.mean(0), sequence_BPD[:, :steps])
        return with_frames(outputs, self.head, self.frame_pool)

    def _window(self, mel_BMF: Tensor) -> Outputs:
        """Outputs of at most one window of batch-normalised spectra; an incomplete patch at its end is left out."""
        x_BDRS = self.patches(mel_BMF.unsqueeze(1))
        x_BDRS = x_BDRS + self._first_positions(x_BDRS.shape[3]) + self.bands
        tokens_BLD = self.norm(self.blocks(self.drop(x_BDRS.flatten(2).transpose(1, 2))))
        embedding_BD = tokens_BLD.mean(1)
        return Outputs(self.head(embedding_BD), embedding_BD, mean_over_mel(tokens_BLD, tuple(x_BDRS.shape[2:])))

    def _first_positions(self, columns: int) -> Tensor:
        """The time positions of the first `columns` columns; selected by index in an exported file.

        torch.export would infer from a slice that it is shorter than the whole, and refuse a full window.
        """
        if torch.compiler.is_exporting():
            return self.time.index_select(3, torch.arange(columns, device=self.time.device))
        return self.time[..., :columns]


def build(arch: CED, *, bands: int, frames: int, num_classes: int) -> ConsistentTransformer:
    """Build CED for `bands`; ValueError where a patch does not fit. It takes 16 frames or more."""
    require_patch_fits(PATCH, PATCH, bands=bands, frames=frames)
    return ConsistentTransformer(arch, bands=bands, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: ConsistentTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names or the published ones, such as weights that were trained without labels.

    The head is dropped when its classes differ.
    """
    weights = {our_name(name): tensor for name, tensor in state.items()}
    return fit_head(weights, model, head=HEAD, other_classes=other_classes)


def our_name(name: str) -> str:
    """Our name of a tensor in a published file."""
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in PUBLISHED_PREFIXES.items() if name.startswith(theirs)),
        name,
    )
