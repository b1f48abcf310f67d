"""How torch computes on the CPU of a process: its threads, and memory of freed tensors that is kept for the next ones.

By default glibc gives memory of more than 32 MB back to the kernel, which has to clear it page by page when a tensor of
the next layer asks for it again: with 32 clips of 10 s that takes up to half of a training step (`make bench`). The
results are the same bits. Other C libraries are left as they are.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
NEVER = -1


def use_cpu(threads: int) -> None:
    """Let torch compute with `threads` threads in this process, and keep the memory that its main thread frees."""
    import torch  # here, since drivers need `memory_variables` before torch is imported

    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and memory_variables():
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_MAX, 0)


def memory_variables() -> dict[str, str]:
    """The environment of a process that keeps what any of its threads frees: Ray's workers compute in one.

    {} where this environment says itself how memory is to be kept, in MALLOC_... or GLIBC_TUNABLES: it is left so.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if own or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return {}
    return {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
