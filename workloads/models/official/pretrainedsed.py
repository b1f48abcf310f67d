"""Weights of FrameMN that the PretrainedSED project published (fschmid56/PretrainedSED, reference/frames.md) in our
terms.

Its networks have two heads over the same sequence: the strong one gives the logits of steps and is kept, the weak one
those of clips and is not trained with the strong one. The width follows from shapes; clips are AudioSet's. Does not
depend on files or tags.
"""

from torch import Tensor

from workloads.config.architectures import FrameMN
from workloads.config.recipe import FrontEnd, Model
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.mn import BLOCKS
from workloads.models.official.converted import Converted, require_distinct_names, rows_or_one

PREFIX = "model.frame_mn."
WIDEST = f"{PREFIX}features.15.block.0.0.weight"  # BLOCKS[-1][2] rows at width 1
MARKS = (WIDEST,)  # names by which these networks are found in a file
STRONG, WEAK = "strong_head.", "weak_head."
GATE = ".conc_se_layers.0."  # the only gate of a block, over channels
BANDS, FRAMES, CLIP_SECONDS = 128, 1000, 10.0


def convert(state: dict[str, Tensor]) -> Converted:
    """Convert a state dict of FrameMN with its strong head; every name and shape is checked.

    The weak head is dropped. Raises ValueError naming what is unknown, missing or of the wrong shape.
    """
    if f"{STRONG}weight" not in state:
        raise ValueError(f"{STRONG}weight is missing: without its strong head a network has no logits in time")
    arch = FrameMN(family="frame_mn", width=_width(state))
    dropped = tuple(name for name in state if name.startswith(WEAK))
    weights = dict(_converted(name, tensor) for name, tensor in state.items() if name not in dropped)
    num_classes = rows_or_one(state, f"{STRONG}weight")
    require_fit(weights, empty_backbone(arch, bands=BANDS, frames=FRAMES, num_classes=num_classes))
    require_distinct_names(state, weights, dropped)
    model = Model(arch=arch, front_end=FrontEnd(kind="pretrainedsed128"))
    return Converted(model, weights, num_classes, CLIP_SECONDS, dropped)


def _width(state: dict[str, Tensor]) -> float:
    """The width, exact to two decimals: rounding to multiples of 8 moves it by at most 4 of 960 channels."""
    if WIDEST not in state or state[WIDEST].ndim != 4:
        raise ValueError(f"{WIDEST} is missing or has not four axes, which it has in FrameMN")
    return round(state[WIDEST].shape[0] / BLOCKS[-1][2], 2)


def _converted(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Our name and shape of a tensor: their gates are dense layers, torchvision's 1 x 1 convolutions."""
    name = name.removeprefix(PREFIX).replace(STRONG, "head.", 1)
    if GATE not in name:
        return name, tensor
    return name.replace(GATE, "."), tensor[..., None, None] if tensor.ndim == 2 else tensor
