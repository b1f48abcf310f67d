"""A checkpoint is one folder: safetensors, JSON, and a marker file, written last, without which it does not count.

Does not depend on where the folder is published (`orchestrator/storage/object_store.py`) or on what the tensors mean.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from workloads.runtime.atomic_files import replace_text
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.json_files import json_text, parse_json, parse_marker
from workloads.runtime.opener import Opener
from workloads.runtime.tensor_files import parse_safetensors, read_weights_file

PICKLES = (".pt", ".pth", ".bin", ".ckpt")  # endings of files that torch.save writes
IMPORT_FIRST = (
    "weights that another project published become a tagger first (antiphon models import FILE OUT), "
    "whose folder is the init"
)


def write(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write `<stem>.safetensors` for each entry, `state.json`, copies of `files`, then the marker; returns the folder.

    `tensors` maps a file's stem to its tensors; `files` maps a file's name to an existing file, which is copied. Raises
    FileExistsError where the folder exists. A kill leaves a folder without marker, which `read_state` refuses.
    """
    folder.mkdir(parents=True)
    for stem, named_tensors in tensors.items():
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors.items()},
            folder / f"{stem}.safetensors",
        )
    for name, path in (files or {}).items():
        shutil.copyfile(path, folder / name)
    (folder / "state.json").write_text(json_text(state, indent=1))
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    replace_text(folder / MARKER, json_text({"files": digests}, indent=1))
    return folder


def read_state(folder: Path, uri: str = "", *, shape: Any = dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's `state.json`, after every file's SHA-256 has been compared.

    `uri` is what errors call the checkpoint, where `folder` is a copy. Raises ValueError where the marker or a file is
    missing, a file's digest differs, or the state has another shape.
    """
    marker, uri = folder / MARKER, uri or str(folder)
    if not marker.is_file():
        raise ValueError(f"checkpoint {uri}: no {MARKER}, so it was never finished; choose another checkpoint")
    for name, digest in parse_marker(marker.read_bytes(), f"checkpoint {uri}: {MARKER}").items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise ValueError(
                f"checkpoint {uri}: {name} is missing or differs from its SHA-256; choose another checkpoint"
            )
    state: dict[str, Any] = parse_json((folder / "state.json").read_bytes(), f"checkpoint {uri}: state.json", shape)
    return state


def read_tensors(folder: Path, stem: str, uri: str = "") -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU; ValueError, naming the checkpoint, where it has none."""
    name = f"checkpoint {uri or folder}: {stem}.safetensors"
    try:
        with (folder / f"{stem}.safetensors").open("rb") as file:
            return parse_safetensors(read_weights_file(file, name), name)
    except FileNotFoundError:
        raise ValueError(f"{name}: is missing; choose another checkpoint") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted names and raw bytes of a state dict: equal exactly when names and all bits are equal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(files: Opener, uri: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's weights and state: of a published tagger's folder, or of one safetensors file, whose state is empty.

    Raises ValueError where a file is missing or not in the safetensors format, or the folder is unfinished or damaged.
    """
    if uri.endswith(PICKLES):
        raise ValueError(f"init = {uri!r}: must be a tagger's folder or a safetensors file; {IMPORT_FIRST}")
    try:
        if uri.endswith(".safetensors"):
            with files.open(uri) as file:
                return parse_safetensors(read_weights_file(file, uri), uri), {}
        contents, folder = {}, files.published_folder(uri)
        for name in (MARKER, "weights.safetensors", "state.json"):
            with files.open(files.join(folder, name)) as file:
                contents[name] = read_weights_file(file, name)
        weights = parse_safetensors(contents["weights.safetensors"], "weights.safetensors")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"init = {uri!r}: neither a safetensors file nor a finished tagger's folder ({error})"
        ) from None
    digests = parse_marker(contents.pop(MARKER), f"init = {uri!r}: {MARKER}")
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != digests.get(name):
            raise ValueError(f"init = {uri!r}: {name} differs from its SHA-256; it was damaged or changed")
    return weights, parse_json(contents["state.json"], f"init = {uri!r}: state.json")
