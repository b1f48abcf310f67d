"""The device of the tests of this folder: `make test-gpu`.

Where there is no GPU they are skipped; `ANTIPHON_GPU_TESTS_ON=cpu make test-gpu` runs them on the CPU, which tests the
tests: a change to them can be tried on any machine.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from workloads.config.recipe import Recipe
from workloads.run import Run


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for `deterministic`, read at cuBLAS's first use
    device = os.environ.get("ANTIPHON_GPU_TESTS_ON", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU that torch can use")
    return device


@pytest.fixture
def only_cuda(device: str) -> None:
    if device != "cuda":
        pytest.skip("asks for what only a GPU does")


@pytest.fixture
def recipe_on(tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A small recipe for a device."""
    return lambda device, name, *settings: tiny(name, *settings, f"train.device={device}")


@pytest.fixture
def start_on(start: Callable[..., Run], device: str) -> Callable[..., Run]:
    """Set up a run of a recipe for the tests' device, on it."""
    return partial(start, device=device)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """An operation without a deterministic form raises an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
