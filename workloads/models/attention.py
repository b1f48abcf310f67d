"""What a Transformer attends to: the explicit path, taken only when somebody asks.

Attention runs fused and gives no weights. Here timm's own explicit path is switched on for one pass
(reference/tkd.md section 9.3); per-head maps are never kept.

Axes: B clips, M mel bands, F frames, N tokens (special ones first).
"""

from contextlib import ExitStack

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from workloads.models.backbone import Backbone


def attention_maps(backbone: Backbone, mel_BMF: Tensor) -> list[Tensor]:
    """The attention A_BNN of every block, first block first, averaged over heads; rows sum to 1. No gradient.

    Raises ValueError for a network without attention, and for spectra longer than a window of CED's.
    """
    assert not backbone.training, "attention is read from a model that teaches: call eval() first"
    layers = [module for module in backbone.modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(backbone).__name__} has no attention; ask a Transformer (vit, ast, ced)")
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: object, weights_BHNN: Tensor) -> None:
        maps.append(weights_BHNN.mean(1))

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
            layer.fused_attn = False  # type: ignore[misc]  # timm marks it final for TorchScript only
            stack.callback(layer.attn_drop.register_forward_hook(keep).remove)
        backbone.outputs(mel_BMF)
    if len(maps[0]) != len(mel_BMF):
        raise ValueError(f"{mel_BMF.shape[2]} frames: this network hears them in windows; ask for one window at a time")
    return maps
