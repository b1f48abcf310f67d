"""Checks whether weights fit a model, by names and shapes. Does not depend on any family."""

from collections.abc import Collection

from torch import Tensor, nn

from workloads.runtime.text import name_some

MAX_SHOWN = 6  # names in a message; a wrong file has hundreds


def fit_head(
    state: dict[str, Tensor], model: nn.Module, *, head: tuple[str, ...], other_classes: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Drop the `head` tensors from the state where their classes differ; ValueError where the rest does not fit.

    The first tensor in `head` has as many rows as there are classes, or a multiple; weights trained without labels have
    no head at all. Returns what to load, and the names of the head where the model keeps its random initial one.
    """
    num_rows = len(model.state_dict()[head[0]])
    other_classes |= not any(name in state for name in head)
    other_classes |= head[0] in state and len(state[head[0]]) != num_rows
    dropped = head if other_classes else ()
    weights = {name: tensor for name, tensor in state.items() if name not in dropped}
    require_fit(weights, model, without=dropped)
    return weights, dropped


def require_fit(weights: dict[str, Tensor], model: nn.Module, *, without: Collection[str] = ()) -> None:
    """Raise ValueError naming every mismatch between `weights` and the model's state dict, less `without`."""
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
    problems = {
        "unknown": [name for name in weights if name not in expected],
        "missing": [name for name in expected if name not in weights],
        "wrong shape": [
            f"{name} is {tuple(weights[name].shape)}, must be {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
        "wrong kind of numbers": [
            f"{name} is {_kind(weights[name])}, must be {_kind(tensor)}"
            for name, tensor in expected.items()
            if name in weights and _kind(weights[name]) != _kind(tensor)
        ],
    }
    misfits = "; ".join(f"{kind}: {name_some(names, MAX_SHOWN)}" for kind, names in problems.items() if names)
    if misfits:
        raise ValueError(
            f"these weights do not fit {type(model).__name__}: {misfits}; use weights of this architecture"
        )


def _kind(tensor: Tensor) -> str:
    """Of the same kind, one can be converted to the other: weights in half precision are as good as any."""
    return "complex" if tensor.is_complex() else "floating" if tensor.is_floating_point() else "whole"
