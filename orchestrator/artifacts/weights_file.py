"""Reads a file of published weights without running code from it, and finds the network's tensors in it.

Training programs put a state dict into containers and wrap networks into others, each with a prefix of its own. Which
prefix that is follows from the name of one tensor that the network must have; whatever else the file holds is left
over, and named. Does not depend on what the tensors mean (`workloads/models/official`).
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime.checkpoint import PICKLES
from workloads.runtime.opener import NotAFile
from workloads.runtime.tensor_files import (
    NeedsCode,
    parse_safetensors,
    parse_torch,
    read_weights_file,
    require_stored,
)
from workloads.runtime.text import name_some

# keys under which training programs save a state dict, in the order in which they are preferred; moving averages last
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
MAX_CONTAINERS = 5  # one within another: a table may hold itself
AVERAGES = ("ema", "avg", "averag", "swa")  # parts of the names of averaged weights beside the last ones
AST_ITSELF = "v."  # no wrapper: AST's own name for the ViT in it
TRANSFORMERS = ("audio_spectrogram_transformer.", "embeddings.patch_embeddings.", "attention.attention.query.")
# modules from which no weights file needs anything; of builtins, types of data are harmless
CODE = (
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "importlib", "pickle", "code", "pty", "socket"),
    *("ctypes", "builtins", "__builtin__", "webbrowser", "multiprocessing", "threading", "operator", "functools"),
)
DATA_TYPES = (
    *("set", "frozenset", "slice", "complex", "bytearray", "bytes", "range", "list", "dict", "tuple", "int", "float"),
    *("bool", "str", "object"),
)


class OtherNetwork(ValueError):
    """No tensor of the file has a name that the network must have."""


@dataclass(frozen=True)
class FoundWeights:
    """A network's tensors under its own names, and the full names of all else that the file holds."""

    state: dict[str, Tensor]
    left_over: tuple[str, ...]


def read_file(uri: str, what: str) -> bytes:
    """The content of a file at a URI; `what` it is begins the ValueError where there is none, or it is too large."""
    try:
        with FsspecFiles().open(uri) as file:
            return read_weights_file(file, f"{what} {uri!r}")
    except FileNotFoundError:
        raise ValueError(f"{what} {uri!r}: no such file") from None
    except NotAFile as error:
        raise ValueError(f"{what} {uri!r}: {error}, no file") from None


def load_weights_file(data: bytes, file: str) -> Any:
    """The content of a weights file called `file`, read without running code from it.

    Raises ValueError for another ending, a damaged file, and one that holds more than tensors: with what that is.
    """
    ending = Path(file).suffix
    if ending not in (*PICKLES, ".safetensors"):
        raise ValueError(f"weights {file!r}: must end in {', '.join(PICKLES)} or .safetensors")
    if ending == ".safetensors":
        return parse_safetensors(data, f"weights {file!r}")
    try:
        return parse_torch(data, f"weights {file!r}")
    except NeedsCode as needs:
        raise ValueError(_needs_code(file, str(needs))) from None


def find_weights(loaded: Any, marks: tuple[str, ...], file: str, project: str) -> FoundWeights:
    """The network in a loaded file, which has a tensor named as one of `marks`, behind whatever prefix.

    Without marks it is all of the file. Raises ValueError where there is no state dict, none or several such networks
    in it, and for numbers in the network that are not finite.
    """
    tensors, left_over = _state_dict(loaded, file)
    prefix = _prefix(tensors, marks, file, project)
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    require_stored(state, f"weights {file!r}")
    non_finite = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if non_finite:
        raise ValueError(f"weights {file!r}: {non_finite[0]} holds numbers that are not finite; use another file")
    return FoundWeights(state, (*(name for name in tensors if not name.startswith(prefix)), *left_over))


def _state_dict(loaded: Any, file: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the innermost container, and the names of all that lies beside it or them."""
    beside: list[str] = []
    for _ in range(MAX_CONTAINERS):
        if not isinstance(loaded, Mapping) or (inner := _container(loaded)) is None:
            break
        beside += [str(key) for key in loaded if key != inner]
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not any(map(torch.is_tensor, loaded.values())):
        found = f"its {next(iter(loaded))!r} is not a tensor" if isinstance(loaded, Mapping) and loaded else ""
        raise ValueError(
            f"weights {file!r}: no state dict at the top level or under {', '.join(CONTAINERS)}; "
            f"{found or f'found {type(loaded).__name__} without tensors'}"
        )
    tensors = {str(name): value for name, value in loaded.items() if torch.is_tensor(value)}
    return tensors, (*(str(name) for name, value in loaded.items() if not torch.is_tensor(value)), *beside)


def _container(loaded: Mapping[Any, Any]) -> Any:
    """The key under which a file holds its state dict; None where it holds tensors itself, or no state dict."""
    inner = [key for key, value in loaded.items() if isinstance(value, Mapping)]
    known = [key for key in CONTAINERS if key in inner]
    averaged = [key for key in inner if _is_average(str(key))]
    holding = [key for key in known if _holds_tensors(loaded[key])]
    if holding or any(map(torch.is_tensor, loaded.values())):
        return next(iter(holding), None)
    return next(iter([*filter(lambda key: _holds_tensors(loaded[key]), averaged), *known, *averaged]), None)


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor, or a table with one in it, at any depth; each table is looked at once."""
    to_look_at, seen = [value], set()
    while to_look_at:
        value = to_look_at.pop()
        if torch.is_tensor(value):
            return True
        if isinstance(value, Mapping) and id(value) not in seen:  # tables may hold themselves, and each other
            seen.add(id(value))
            to_look_at += value.values()
    return False


def _is_average(name: str) -> bool:
    return any(part in name.lower() for part in AVERAGES)


def _prefix(tensors: dict[str, Tensor], marks: tuple[str, ...], file: str, project: str) -> str:
    """What stands before the names of the network's tensors."""
    if not marks:
        return ""
    found = {
        name.removesuffix(longest): None
        for name in tensors
        if (longest := max((mark for mark in marks if _is_behind_prefix(name, mark)), key=len, default=""))
    }
    prefixes = list(found)
    if len(prefixes) > 1:  # a network and its moving average
        prefixes = [prefix for prefix in prefixes if not _is_average(prefix)]
    if len(prefixes) == 1:
        return prefixes[0]
    if found:
        raise ValueError(
            f"weights {file!r}: holds several networks, under {', '.join(map(repr, found))}; save one of them alone"
        )
    names = name_some(list(tensors))
    if any(part in name for name in tensors for part in TRANSFORMERS):
        raise OtherNetwork(
            f"weights {file!r}: these names are those of Hugging Face's transformers ({names}), of which a whole "
            f"ASTForAudioClassification can be imported; give that, or the file that {project} itself published"
        )
    raise OtherNetwork(
        f"weights {file!r}: no tensor is named {' or '.join(marks)}, as in the networks of {project}; found {names}; "
        "give another --family or file"
    )


def _is_behind_prefix(name: str, mark: str) -> bool:
    """Whether a tensor is named as the mark, alone or behind a wrapper's prefix."""
    prefix = name.removesuffix(mark)
    return name == mark or (name.endswith(f".{mark}") and not f".{prefix}".endswith(f".{AST_ITSELF}"))


def _needs_code(file: str, what: str) -> str:
    """Why a file that wants something called is refused; how to convert it where that may be a harmless class."""
    module, _, name = what.rpartition(".")
    if module.split(".")[0] in CODE and not (module.endswith(("builtins", "__builtin__")) and name in DATA_TYPES):
        return (
            f"weights {file!r}: wants to run code when it is loaded ({what}), which no weights need; refused, and "
            "nothing of it was run. Do not load it with other programs either"
        )
    safe = Path(file).with_suffix(".safetensors").name
    script = (
        "import torch; from safetensors.torch import save_file; "
        f'state = torch.load({Path(file).name!r}, map_location="cpu", weights_only=False)["state_dict"]; '
        f"save_file({{name: tensor.clone() for name, tensor in state.items()}}, {safe!r})"
    )
    return (
        f"weights {file!r}: holds more than tensors ({what}), and loading that can run arbitrary code. If you "
        f"trust it, convert it in an isolated environment: {shlex.join(['python', '-c', script])} "
        f'(["state_dict"], or the key under which it holds its state dict), then import {shlex.quote(safe)}'
    )
