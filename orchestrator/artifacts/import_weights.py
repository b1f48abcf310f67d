"""Imports published weights as taggers. Reads a weights file without running code from it, and writes a checkpoint.

Owns files, tags and the recorded origin; `workloads/models/official` maps names and shapes of tensors. AudioSet's 527
tags, in workloads/models/official/audioset_tags.txt, are the display names of class_labels_indices.csv of AudioSet
(Google; its ontology is under CC BY 4.0), in the order of their index, as EfficientAT, CED and AST carry it.
"""

import hashlib
import io
import pickle
import re
import tempfile
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from orchestrator.storage import object_store
from workloads.config.recipe import MODEL_NAME
from workloads.data.table import parse_csv
from workloads.models.official import efficientat
from workloads.models.official.converted import Converted
from workloads.models.official.projects import converter, source_of
from workloads.models.official.to_tagger import to_tagger
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.text import decode_text

PICKLES = (".pt", ".pth", ".bin")
CONTAINERS = ("state_dict", "model")  # keys under which training programs save a state dict
WRAPPERS = ("module.", "model.")  # prefixes that DataParallel and Lightning add to every name
AUDIOSET = 527
STRIDED = ("mn", "dymn")  # the weights of these families do not show their strides


def import_weights(
    file: str,
    out: str,
    *,
    family: str,
    tags: str | None = None,
    name: str | None = None,
    strides: str | None = None,
    labels: str | None = None,
) -> dict[str, Any]:
    """Write the published weights in `file` as a tagger at `out`, a new folder or URI; returns a summary of it.

    `tags` is a file with one tag per line, or a CSV with a column display_name; 527 classes need none. Raises
    ValueError for files that are damaged, hold more than tensors or numbers that are not finite, for weights that do
    not fit `family`, for another number of tags than classes, and where `out` exists.
    """
    checked_labels = None if labels is None else _checked_labels(labels)
    source = source_of(family)
    base = file.rstrip("/").rsplit("/", 1)[-1]
    name = _checked_name(name, base, family)
    _require_new(out)
    data = _read(file, "weights")
    converted = _convert(_state_dict(_load(data, file), file), base, family, strides)
    tagger = to_tagger(converted, _tags(converted.num_classes, tags), name=name, labels=checked_labels)
    origin = {
        "project": source.project,
        "family": family,
        "file": base,
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": source.licence,
        "imported_with": f"antiphon {version('antiphon')}",
    }
    uri = _write(tagger, out, name, origin)
    return {"checkpoint": uri, **_summary(tagger, name, converted), "origin": origin}


def _summary(tagger: Tagger, name: str, converted: Converted) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"arch": asdict(tagger.model.arch), "front_end": asdict(tagger.model.front_end)},
        "tags": len(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "params": tagger.num_parameters,
        "dropped": list(converted.dropped),
    }


def _checked_name(name: str | None, base: str, family: str) -> str:
    """The tagger's name; by default derived from the file's."""
    derived = re.sub(r"[^a-z0-9]+", "_", base.rsplit(".", 1)[0].lower()).strip("_")
    name = name or (derived if MODEL_NAME.fullmatch(derived) else f"{family}_{derived}")
    if not MODEL_NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a name is a small letter, then small letters, digits or _")
    return name


def _checked_labels(labels: str) -> Literal["single", "multi"]:
    kinds: dict[str, Literal["single", "multi"]] = {"single": "single", "multi": "multi"}
    if labels not in kinds:
        raise ValueError(f"--labels {labels!r}: must be single (one tag per clip) or multi (any number)")
    return kinds[labels]


def _require_new(out: str) -> None:
    if not object_store.is_local(out):
        object_store.check_storage(out.rstrip("/").rsplit("/", 1)[0])
    if object_store.exists(out):
        raise ValueError(f"OUT {out!r}: exists already; choose a new folder or URI")


def _read(uri: str, what: str) -> bytes:
    try:
        with object_store.FsspecFiles().open(uri) as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{what} {uri!r}: no such file") from None


def _load(data: bytes, file: str) -> Any:
    """The content of a weights file, read without running code from it."""
    ending = Path(file).suffix
    if ending not in (*PICKLES, ".safetensors"):
        raise ValueError(f"weights {file!r}: must end in {', '.join(PICKLES)} or .safetensors")
    try:
        if ending == ".safetensors":
            return load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"weights {file!r}: not a safetensors file, or a damaged one ({error})") from None
    except pickle.UnpicklingError as error:
        needs = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise ValueError(_needs_code(file, needs[1]) if needs else _damaged(file, error)) from None
    except Exception as error:  # torch raises errors of many types for damaged files
        raise ValueError(_damaged(file, error)) from None


def _damaged(file: str, error: Exception) -> str:
    inner = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))  # without torch's advice to load it unsafely
    reason = f"{type(error).__name__}: {inner[1] if inner else error}".splitlines()[0][:200]
    return f"weights {file!r}: not a file that torch.save wrote, or a damaged one ({reason})"


def _needs_code(file: str, what: str) -> str:
    safe = str(Path(file).with_suffix(".safetensors").name)
    return (
        f"weights {file!r}: holds more than tensors ({what}), and loading that can run arbitrary code. If you "
        "trust it, convert it in an isolated environment:\n"
        "python -c 'import torch; from safetensors.torch import save_file;\n"
        f'state = torch.load("{Path(file).name}", map_location="cpu", weights_only=False)["state_dict"];\n'
        f'save_file({{name: tensor.clone() for name, tensor in state.items()}}, "{safe}")\'\n'
        f'(["state_dict"], or the key under which it holds its state dict), then import {safe}'
    )


def _state_dict(loaded: Any, file: str) -> dict[str, Tensor]:
    """The state dict in a loaded file, without containers around it and prefixes of its names."""
    while isinstance(loaded, dict) and (inner := next((key for key in CONTAINERS if key in loaded), None)):
        loaded = loaded[inner]
    other = [key for key, value in loaded.items() if not torch.is_tensor(value)] if isinstance(loaded, dict) else []
    if not isinstance(loaded, dict) or not loaded or other:
        problem = f"its {other[0]!r} is not a tensor" if other else f"found {type(loaded).__name__} without tensors"
        raise ValueError(
            f"weights {file!r}: no state dict at the top level or under {', '.join(CONTAINERS)}; {problem}"
        )
    state = {str(name): tensor for name, tensor in loaded.items()}
    non_finite = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if non_finite:
        raise ValueError(f"weights {file!r}: {non_finite[0]} holds numbers that are not finite; use another file")
    while wrapper := next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _convert(state: dict[str, Tensor], base: str, family: str, strides: str | None) -> Converted:
    """The weights under our names of tensors. Raises ValueError with the file's name where they do not fit `family`."""
    checked = None
    if family in STRIDED:
        checked = _strides(strides)
        efficientat.check_file_name(base, checked)
    elif strides:
        raise ValueError(f"--strides {strides}: for {' and '.join(STRIDED)} only, not for {family}")
    try:
        converted: Converted = converter(family).convert(state, **({"strides": checked} if checked else {}))
    except ValueError as error:
        raise ValueError(f"{base}: {error}") from None
    actual = converted.model.arch.family
    if family in STRIDED and actual != family:
        raise ValueError(f"--family {family}: {base} is a network of the family {actual}; use --family {actual}")
    return converted


def _strides(strides: str | None) -> efficientat.Strides:
    if strides is None:
        return efficientat.DEFAULT_STRIDES
    if not re.fullmatch("[12]{4}", strides):
        raise ValueError(f"--strides {strides!r}: must be four times 1 or 2, such as 2221")
    first, second, third, fourth = (int(stride) for stride in strides)
    return first, second, third, fourth


def _tags(num_classes: int, file: str | None) -> tuple[str, ...]:
    """The names of the classes, in their order."""
    if file is None and num_classes != AUDIOSET:
        raise ValueError(f"these weights have {num_classes} classes; name them with --tags FILE, one tag per line")
    if file is None:
        return tuple((resources.files("workloads.models.official") / "audioset_tags.txt").read_text().splitlines())
    content = _read(file, "--tags")
    if file.endswith(".csv"):
        tags = _column(content, file)
    else:
        lines = decode_text(content, file).splitlines()
        tags = [line.strip() for line in lines if line.strip()]
    if len(tags) != num_classes:
        raise ValueError(
            f"--tags {file!r}: lists {len(tags)} tags, the weights have {num_classes} classes; give one tag per class"
        )
    duplicates = [tag for number, tag in enumerate(tags) if tag in tags[:number]]
    if duplicates:
        raise ValueError(f"--tags {file!r}: {duplicates[0]!r} is listed twice; give every class another name")
    return tuple(tags)


def _column(content: bytes, file: str) -> list[str]:
    rows = list(parse_csv(content, file))
    if not rows or "display_name" not in rows[0]:
        raise ValueError(f"--tags {file!r}: a CSV file needs a column display_name, in the order of the classes")
    if "index" in rows[0] and [row["index"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(f"--tags {file!r}: its column index must count the rows from 0")
    return [row["display_name"] for row in rows]


def _write(tagger: Tagger, out: str, name: str, origin: dict[str, str]) -> str:
    """Publish a tagger at `out`, in the format in which a run delivers its taggers, without scores and recipe."""
    state = {
        "kind": "tagger",
        "name": name,
        "model": asdict(tagger.model),
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "clip_rate": tagger.clip_rate,
        "origin": origin,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint.write(Path(scratch) / "tagger", tensors={"weights": tagger.state_dict()}, state=state)
        return object_store.publish(folder, out)
