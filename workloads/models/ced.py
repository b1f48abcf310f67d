"""CED: a plain ViT over few, large mel bands, for clips of any length (reference/ced.md section 6).

What makes it CED is written here: batch norm over the mel bands instead of a data set's mean, a position for time and
one for frequency that are added, the mean over all patches, and windows for what is longer than it was built for.
Blocks are timm's. Knows no front end and no training.

Axes: B clips, M mel bands, F frames, C tags; patches are (R rows of the mel axis, T columns of time), D features.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.config.architectures import CED
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head
from workloads.models.patches import along_time, require_room

PATCH, DEPTH = 16, 12
WINDOW = 1012  # frames that the positions reach over: 10 s and a little
SIZES = {"tiny": (192, 3), "mini": (256, 4), "small": (384, 6), "base": (768, 12)}  # dimension, heads
PUBLISHED = {  # how names in the published files begin -> how ours do
    "init_bn.1.": "norm_mel.",
    "patch_embed.proj.": "patches.",
    "time_pos_embed": "time",
    "freq_pos_embed": "bands",
    "outputlayer.": "head.",
}
HEAD = ("head.1.weight", "head.1.bias", "head.0.weight", "head.0.bias")


class ConsistentTransformer(Backbone):
    """mel_BMF (in decibels, any length) to logits_BC; clips longer than a window are heard window by window.

    The last window is filled up with zeros behind the batch norm; logits and embeddings are averaged over the windows.
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
        self.norm = norm(dim)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        frames = mel_BMF.shape[2]
        mel_BMF = self.norm_mel(mel_BMF)
        num_windows = max(1, -(-frames // WINDOW))
        if num_windows == 1:
            return self._window(mel_BMF)
        filled_BMF = F.pad(mel_BMF, (0, num_windows * WINDOW - frames))
        heard = self._window(torch.cat(filled_BMF.split(WINDOW, dim=2)))
        logits_WBC, embedding_WBD, sequence_WBPD = (part.unflatten(0, (num_windows, -1)) for part in heard)
        sequence_BPD = torch.cat(sequence_WBPD.unbind(0), dim=1)
        steps = (num_windows - 1) * self.time.shape[3] + -(-(frames - (num_windows - 1) * WINDOW) // PATCH)
        return Outputs(logits_WBC.mean(0), embedding_WBD.mean(0), sequence_BPD[:, :steps])

    def _window(self, mel_BMF: Tensor) -> Outputs:
        """At most one window of batch-normalised spectra; what does not fill a patch at its end is left out."""
        x_BDRT = self.patches(mel_BMF.unsqueeze(1))
        x_BDRT = x_BDRT + self._first_positions(x_BDRT.shape[3]) + self.bands
        tokens_BND = self.norm(self.blocks(self.drop(x_BDRT.flatten(2).transpose(1, 2))))
        embedding_BD = tokens_BND.mean(1)
        return Outputs(self.head(embedding_BD), embedding_BD, along_time(tokens_BND, tuple(x_BDRT.shape[2:])))

    def _first_positions(self, columns: int) -> Tensor:
        """As many positions of time as there are columns; picked one by one in an exported file.

        torch.export takes it for a rule that a slice is shorter than the whole, and refuses a full window.
        """
        if torch.compiler.is_exporting():
            return self.time.index_select(3, torch.arange(columns, device=self.time.device))
        return self.time[..., :columns]


def build(arch: CED, *, bands: int, frames: int, num_classes: int) -> ConsistentTransformer:
    """Build CED for `bands`; ValueError where a patch does not fit. It takes any number of frames from 16 on."""
    require_room(PATCH, bands=bands, frames=frames)
    return ConsistentTransformer(arch, bands=bands, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: ConsistentTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take a state dict in our own key names or the published ones, as of weights that were trained without labels.

    The head is dropped when it tells other classes apart.
    """
    weights = {our_name(name): tensor for name, tensor in state.items()}
    return fit_head(weights, model, head=HEAD, other_classes=other_classes)


def our_name(name: str) -> str:
    """The name of a published file's tensor here."""
    return next(
        (ours + name.removeprefix(theirs) for theirs, ours in PUBLISHED.items() if name.startswith(theirs)), name
    )
