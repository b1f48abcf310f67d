"""Source of exported programs: it computes what the program does, and what cannot be written is named."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from workloads.export.graph_code import NoSource, function_source, stored_tensors


class Module(nn.Module):
    """A module that computes a function, with one weight and one buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))
        self.register_buffer("shift", torch.tensor([1.0, 1.0, 1.0]), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def source_and_tensors(module: Module) -> tuple[str, dict[str, Tensor]]:
    with torch.no_grad():
        program = torch.export.export(module, (torch.ones(2, 3),), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    return function_source(program, name="compute", arguments=("x",)), stored_tensors(program)


def in_full_precision(self: Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        first, second = (x * self.weight).split([1, 2], dim=1)
        total = first + second.sum(1, keepdim=True)
    return total.masked_fill(x[:, :1] < 0, -math.inf) + self.shift


FUNCTIONS: dict[str, Callable[[Module, Tensor], Any]] = {
    "contexts, infinity, several outputs of an operation": in_full_precision,
    "sizes": lambda self, x: torch.zeros(2 * x.shape[0] - 1, (x.shape[0] + 3) // 2) + x.sum(),
    "constants, types, devices": lambda self, x: x.double() + torch.arange(3, device=x.device) + torch.tensor([0.5]),
    "in place": lambda self, x: (x * 2).add_(self.shift).relu_(),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_the_source_computes_what_the_program_does(function: Callable[[Module, Tensor], Any]) -> None:
    module = Module(function)
    source, tensors = source_and_tensors(module)
    defined: dict[str, Any] = {"torch": torch}
    exec(source, defined)
    for count in (1, 2, 5):
        x = torch.linspace(-2, 3, 3 * count).reshape(count, 3)
        assert torch.equal(defined["compute"](tensors, x), module(x).detach())


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda self, x: (x, x + 1), "the program has 2 outputs"),
        (lambda self, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "cond: cannot be written as source"),
    ],
)
def test_what_cannot_be_written_is_named(function: Callable[[Module, Tensor], Any], problem: str) -> None:
    with pytest.raises(NoSource, match=problem):
        source_and_tensors(Module(function))


def test_autocast_that_is_on_is_refused() -> None:
    def rounded(self: Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ self.weight[:, None]

    with pytest.raises(NoSource, match="autocast is on"):
        source_and_tensors(Module(rounded))
