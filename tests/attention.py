"""Attention maps of a Transformer, from timm's explicit attention.

The fused attention that networks normally run returns no weights. Here timm's explicit one is switched on for one
pass (reference/tkd.md section 9.3); maps of single heads are not kept.

Axes: B clips, M mel bands, F frames, H heads, L tokens (special ones first).
"""

from contextlib import ExitStack

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from workloads.models.backbone import Backbone


def attention_maps(backbone: Backbone, mel_BMF: Tensor) -> list[Tensor]:
    """The attention A_BLL of every block, first block first, averaged over heads; rows sum to 1. No gradient.

    Raises ValueError for a network without attention, and for spectra longer than one window of CED's.
    """
    assert not backbone.training, "attention maps are taken from a teacher in eval mode: call eval() first"
    layers = [module for module in backbone.modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(backbone).__name__} has no attention layers; use a Transformer (vit, ast, ced)")
    maps: list[Tensor] = []

    def record(_: nn.Module, __: object, weights_BHLL: Tensor) -> None:
        maps.append(weights_BHLL.mean(1))

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
            layer.fused_attn = False  # type: ignore[misc]  # timm marks it final for TorchScript only
            stack.callback(layer.attn_drop.register_forward_hook(record).remove)
        backbone.outputs(mel_BMF)
    if len(maps[0]) != len(mel_BMF):
        raise ValueError(
            f"{mel_BMF.shape[2]} frames: this network processes them in windows; pass one window at a time"
        )
    return maps
