"""What reading a published state dict gives, whichever project it came from."""

from typing import Literal, NamedTuple

from torch import Tensor

from workloads.config.recipe import Model


class Converted(NamedTuple):
    """A published network in our terms: what it is, what it hears, and its weights in our key names."""

    model: Model  # arch and front end; the rest as a recipe leaves it
    weights: dict[str, Tensor]  # in the backbone's own key names, every one of them
    num_classes: int
    clip_seconds: float  # of the clips it was trained on
    dropped: tuple[str, ...]  # names left out on purpose, such as unused heads
    labels: Literal["single", "multi"] = "multi"  # whether exactly one tag is right (softmax), or any number (sigmoid)
