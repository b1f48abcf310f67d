"""TF32 is switched for all kinds of operations, full float32 is a context, and slow bf16 is warned of."""

from collections.abc import Iterator

import pytest
import torch

from workloads.config.recipe import Train
from workloads.runtime.precision import full_float32, precision_warnings, set_tf32

Flags = tuple[str, bool, bool]


@pytest.fixture(autouse=True)
def torchs_defaults() -> Iterator[None]:
    yield
    set_tf32(False)
    torch.backends.cudnn.allow_tf32 = True


def tf32_flags() -> Flags:
    """Torch's settings of products, and whether products and convolutions are rounded on CUDA."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


ON: Flags = ("high", True, True)
OFF: Flags = ("highest", False, False)


def test_tf32_is_set_for_products_and_convolutions_alike() -> None:
    set_tf32(True)
    assert tf32_flags() == ON
    set_tf32(False)
    assert tf32_flags() == OFF


def test_full_float32_is_without_tf32_and_autocast_and_ends_with_its_context() -> None:
    set_tf32(True)
    with full_float32(torch.device("cuda")):
        inside = tf32_flags()
    assert (inside, tf32_flags()) == (OFF, ON)
    with torch.autocast("cpu", torch.bfloat16), full_float32(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("instructions", "train", "warns"),
    [
        ({"avx2": True, "avx512_bf16": False}, Train(precision="bf16"), True),
        ({"avx2": True, "avx512_bf16": True}, Train(precision="bf16"), False),
        ({"neon": True, "bf16": True}, Train(precision="bf16"), False),
        ({"avx2": True}, Train(precision="fp32"), False),
        ({"avx2": True}, Train(precision="bf16", device="cuda"), False),
    ],
)
def test_slow_bf16_is_warned_of(instructions, train, warns, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    warnings = precision_warnings(train)
    assert len(warnings) == warns
    assert all("train.precision = 'bf16'" in line and "set it to 'fp32'" in line for line in warnings)
