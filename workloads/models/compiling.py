"""Checks whether torch.compile works on the machine of a run. Does not depend on any model."""

import torch


def require_compiler(device: torch.device) -> None:
    """Compile a trivial function on `device`; ValueError, with torch's own reason, where that fails."""
    torch.compiler.reset()
    try:
        with torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # every backend raises its own type
        reason = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split())[:200]
        raise ValueError(
            f"train.compile = True: torch cannot compile on {device.type} here ({reason}); install a C++ compiler "
            "(Debian: apt install g++; on a GPU also Triton), or leave train.compile out"
        ) from None
