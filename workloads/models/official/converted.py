"""The result of reading a published state dict, and the checks that the readers of all projects share."""

from typing import Literal, NamedTuple

from torch import Tensor

from workloads.config.recipe import Model


class Converted(NamedTuple):
    """A published network in our terms: its architecture and front end, and its weights in our key names."""

    model: Model  # arch and front end; the rest has a recipe's default values
    weights: dict[str, Tensor]  # in the backbone's key names, all of them
    num_classes: int
    clip_seconds: float  # of the clips it was trained on
    dropped: tuple[str, ...]  # names left out on purpose, such as unused heads
    labels: Literal["single", "multi"] = "multi"  # exactly one tag per clip (softmax), or any number (sigmoid)


class ConvertedEncoder(NamedTuple):
    """A pretrained network that knows no tags, in our terms."""

    model: Model  # arch and front end
    weights: dict[str, Tensor]  # in the backbone's key names, all but the head's
    dropped: tuple[str, ...]  # names left out on purpose


def rows_or_one(state: dict[str, Tensor], name: str) -> int:
    """The number of classes, from the rows of the head's tensor `name`.

    1 where that is missing or a single number, so that a network can be built and the check of names reports it.
    """
    return state[name].shape[0] if name in state and state[name].ndim else 1


def require_distinct_names(
    state: dict[str, Tensor], weights: dict[str, Tensor], dropped: tuple[str, ...] = (), *, num_added: int = 0
) -> None:
    """ValueError where two tensors of `state` were renamed to the same name in `weights`.

    `dropped` were left out of `weights`; `num_added` tensors of it do not come from `state`.
    """
    if len(weights) != len(state) - len(dropped) + num_added:
        raise ValueError("two tensors are named for the same part: this file is not the state dict of one network")


def require_heads(found: int | None, size: tuple[int, int]) -> None:
    """ValueError where a description says another number of attention heads than our network of this size has.

    `size` is its dimension and heads. Without a description, None, its project's own number is assumed.
    """
    dim, heads = size
    if found not in (None, heads):
        raise ValueError(
            f"num_heads = {found}, as config.json says: the network that is {dim} wide has {heads} here, so its logits "
            "differ"
        )
