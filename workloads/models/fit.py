"""Do these weights fit this model? Knows names and shapes, no family."""

from collections.abc import Collection

from torch import Tensor, nn

SHOWN = 6  # names in a message; a wrong file has hundreds


def fit_head(
    state: dict[str, Tensor], model: nn.Module, *, head: tuple[str, ...], other_classes: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state without its `head` tensors where these tell other classes apart; ValueError where the rest misfits.

    The rows of the first tensor in `head` tell the number of classes; weights that were trained without labels have no
    head at all. Returns what to load, and the names of the head where it stays as it was drawn.
    """
    wanted = len(model.state_dict()[head[0]])
    other_classes |= not any(name in state for name in head)
    other_classes |= head[0] in state and len(state[head[0]]) != wanted
    dropped = head if other_classes else ()
    weights = {name: tensor for name, tensor in state.items() if name not in dropped}
    require_fit(weights, model, without=dropped)
    return weights, dropped


def require_fit(weights: dict[str, Tensor], model: nn.Module, *, without: Collection[str] = ()) -> None:
    """Raise ValueError naming every kind of misfit between `weights` and the model's state, less `without`."""
    needed = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in without}
    problems = {
        "unknown": [name for name in weights if name not in needed],
        "missing": [name for name in needed if name not in weights],
        "wrong shape": [
            f"{name} is {tuple(weights[name].shape)}, must be {tuple(shape)}"
            for name, shape in needed.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    said = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if said:
        raise ValueError(
            f"these weights do not fit {type(model).__name__}; {'; '.join(said)}. They belong to another architecture"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
