"""What the blocks of a Transformer attend with while it runs: queries and keys, by hooks on timm's and torchaudio's
layers. Does not depend on what is made of them.

Axes: B clips, L tokens, D features of a token, H heads, E features of a head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Attended(NamedTuple):
    """One block that ran: in fp32, without gradient."""

    query_BHLE: Tensor
    key_BHLE: Tensor
    scale: float  # of their products
    kept_B: Tensor | None  # clips whose attention stochastic depth kept; None: all


OnBlock = Callable[[Attended], None]


def hook_timm_blocks(network: nn.Module, on_block: OnBlock) -> list[RemovableHandle]:
    """Tell `on_block` of every block of timm's that runs, in their order, until the hooks are removed."""
    from timm.models.vision_transformer import Block  # seconds, unless such a network was built

    blocks = [module for module in network.modules() if isinstance(module, Block)]
    return [hook for block in blocks for hook in _hook_timm_block(block, on_block)]


def _hook_timm_block(block: Any, on_block: OnBlock) -> list[RemovableHandle]:
    layer, projected = block.attn, list[Tensor]()

    def keep(_: Any, __: Any, qkv_BLX: Tensor) -> None:
        projected.append(qkv_BLX.detach().float())

    def tell(drop_path: nn.Module, _: Any, branch_BLD: Tensor) -> None:
        qkv_BLX = projected.pop()
        heads = qkv_BLX.unflatten(2, (3, layer.num_heads, layer.head_dim)).permute(2, 0, 3, 1, 4)
        may_drop = drop_path.training and getattr(drop_path, "drop_prob", 0.0) > 0
        # what stochastic depth drops is exactly 0
        kept_B = (branch_BLD.detach() != 0).flatten(1).any(1) if may_drop else None
        on_block(Attended(layer.q_norm(heads[0]), layer.k_norm(heads[1]), layer.scale, kept_B))

    return [layer.qkv.register_forward_hook(keep), block.drop_path1.register_forward_hook(tell)]


def hook_torchaudio_blocks(network: nn.Module, on_block: OnBlock) -> list[RemovableHandle]:
    """The same of torchaudio's wav2vec 2.0."""
    from torchaudio.models.wav2vec2.components import SelfAttention

    layers = [module for module in network.modules() if isinstance(module, SelfAttention)]
    return [hook for layer in layers for hook in _hook_torchaudio_layer(layer, on_block)]


def _hook_torchaudio_layer(layer: Any, on_block: OnBlock) -> list[RemovableHandle]:
    projected = dict[nn.Module, Tensor]()

    def keep(projection: nn.Module, _: Any, x_BLD: Tensor) -> None:
        projected[projection] = x_BLD.detach().float().unflatten(2, (layer.num_heads, -1)).transpose(1, 2)

    def tell(_: Any, __: Any, ___: Any) -> None:
        on_block(Attended(projected.pop(layer.q_proj), projected.pop(layer.k_proj), layer.scaling, None))

    projections = (layer.q_proj, layer.k_proj)
    return [*(one.register_forward_hook(keep) for one in projections), layer.register_forward_hook(tell)]
