"""Whether torch.compile works where a run lives. Knows no model."""

import torch


def require_compiler(device: torch.device) -> None:
    """Compile the smallest function there is; ValueError, with torch's own reason, where that fails."""
    torch.compiler.reset()
    try:
        with torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
            torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # every backend has its own
        reason = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split())[:200]
        raise ValueError(
            f"train.compile = True: torch cannot compile on {device.type} here ({reason}); install a C++ compiler "
            "(Debian: apt install g++; on a GPU also Triton), or leave train.compile out"
        ) from None
