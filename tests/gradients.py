"""Checks of a network's gradients after a backward pass."""

from torch import nn


def parameters_without_gradient(model: nn.Module, *, at_most: float = 0.0) -> list[str]:
    """Names of the parameters whose gradient is missing, NaN or nowhere larger than `at_most`."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > at_most
    ]
