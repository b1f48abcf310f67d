"""Files of tensors that others may have written: bounded in size, read without running code, checked before use.

All weights and checkpoints pass here: what takes far more memory than its file has bytes is refused, and whatever the
file's library raises becomes a ValueError that names the file. Does not depend on what the tensors mean.
"""

import io
import pickle
import re
import warnings
import zipfile
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from workloads.runtime.opener import read_bounded
from workloads.runtime.pickle_globals import refused_global

MAX_BYTES = 10_000_000_000  # of one file: its tensors are read into memory


def read_weights_file(file: BinaryIO, name: str) -> bytes:
    """The content of a file; ValueError where it has more than MAX_BYTES bytes, of which no more are read."""
    content = read_bounded(file, MAX_BYTES)
    if content is None:
        raise ValueError(f"{name}: larger than {MAX_BYTES:,} bytes; is it the right file?")
    return content


def parse_safetensors(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; its format lets no tensor claim more bytes than the file has."""
    try:
        return load(content)
    except (SafetensorError, RecursionError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{name}: not a safetensors file, or a damaged one ({_first_line(error)})") from None


def parse_torch(content: bytes, name: str) -> Any:
    """What torch.save wrote, read without running code from it.

    Raises NeedsCode where it holds more than tensors and plain values, ValueError for every other fault.
    """
    try:
        _require_not_compressed(content)
        with warnings.catch_warnings(action="ignore"):  # of other pickle protocols than torch's own
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = refused_global(content, error)
        raise NeedsCode(needs) if needs else ValueError(_damaged(name, error)) from None
    except Exception as error:  # torch raises errors of many types for damaged files
        raise ValueError(_damaged(name, error)) from None


class NeedsCode(ValueError):
    """Loading the file would run code from it; the message is what it needs."""


def require_stored(tensors: dict[str, Tensor], name: str) -> None:
    """ValueError where a tensor has no numbers of its own, or claims more than are stored.

    A view that repeats a few numbers takes a file of some hundred bytes to any shape, and memory once it is used.
    """
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_nested:
            raise ValueError(f"{name}: {key!r} is no plain tensor of numbers; use another file")
        stored, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
        if claimed > stored:
            raise ValueError(
                f"{name}: {key!r} claims {tuple(tensor.shape)} numbers, {claimed:,} bytes, and {stored:,} are stored; "
                "use another file"
            )


def _require_not_compressed(content: bytes) -> None:
    """torch.save does not compress: an entry that says so may unpack to any size."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
                    raise ValueError(f"its entry {entry.filename} is compressed, and torch.save writes none so")


def _damaged(name: str, error: Exception) -> str:
    inner = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))  # without torch's advice to load it unsafely
    reason = f"{type(error).__name__}: {inner[1] if inner else error}".splitlines()[0][:200]
    return f"{name}: not a file that torch.save wrote, or a damaged one ({reason})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
