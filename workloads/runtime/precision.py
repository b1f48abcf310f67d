"""The precision of floating-point operations: TF32 and autocast, and bf16 on a CPU without instructions for it.

Does not depend on models or on the loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workloads.config.recipe import Train

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86, then Arm


def set_tf32(enabled: bool) -> None:
    """Whether CUDA may round the inputs of float32 products, convolutions and recurrent layers to TF32 (10 bits).

    For this process, until it is called again. By torch's defaults convolutions and recurrent layers do, products do
    not. Not by torch's `fp32_precision`: once that is "tf32", functions that torch.compile calls raise an error.
    """
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """A context in which float32 operations on the device are neither cast by autocast nor rounded to TF32."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        set_tf32(False)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = convolutions


def training_autocast(train: Train, device: torch.device) -> torch.autocast:
    """The context of a forward in training and validation: bf16 with `train.precision` = "bf16", else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")


def precision_warnings(train: Train) -> list[str]:
    """What to say of `train.precision` before a run starts: that bf16 is slow on the CPU of this machine, if it is."""
    if train.device != "cpu" or train.precision != "bf16":
        return []
    have = torch.cpu.get_capabilities()
    if any(have.get(instructions) for instructions in BF16_INSTRUCTIONS):
        return []
    return [
        "train.precision = 'bf16': this machine's CPU has no bf16 instructions, so a step takes longer than in fp32 "
        "(six times as long for the recipe demo); set it to 'fp32'"
    ]
