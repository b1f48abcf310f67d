"""Published weights become taggers of ours: a file is read without running code from it, named, tagged and written.

Which names and shapes mean what is known in `workloads/official`; here are files, tags and the origin. AudioSet's 527
tags, shipped as workloads/official/audioset_tags.txt, are the display names of class_labels_indices.csv of AudioSet
(Google; its ontology is under CC BY 4.0), in the order of their index, as EfficientAT, CED and AST carry it.
"""

import csv
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
from workloads.models.official import efficientat
from workloads.models.official.converted import Converted
from workloads.models.official.projects import converter, source_of
from workloads.models.official.to_tagger import to_tagger
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint

PICKLES = (".pt", ".pth", ".bin")
CONTAINERS = ("state_dict", "model")  # what a training program keeps its state dict under
WRAPPERS = ("module.", "model.")  # what DataParallel and Lightning put before every name
AUDIOSET = 527
STRIDED = ("mn", "dymn")  # whose strides their weights do not show


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
    """Write the published weights in `file` as a tagger at `out`, a new folder or URI; returns what was made of them.

    `tags` is a file with one tag per line, or a CSV with a column display_name; 527 classes need none. Raises
    ValueError for files that are damaged, hold more than tensors or numbers that are not finite, for weights that do
    not fit `family`, for tags of another number, and where `out` exists.
    """
    told = None if labels is None else _checked_labels(labels)
    source = source_of(family)
    base = file.rstrip("/").rsplit("/", 1)[-1]
    name = _checked_name(name, base, family)
    _require_new(out)
    data = _read(file, "weights")
    state = _state_dict(_load(data, file), file)
    converted = _convert(state, base, family, strides)
    tagger = to_tagger(converted, _tags(converted.num_classes, tags), name=name, labels=told)
    origin = {
        "project": source.project,
        "family": family,
        "file": base,
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": source.licence,
        "imported_with": f"antiphon {version('antiphon')}",
    }
    return {
        "checkpoint": _write(tagger, out, name, origin),
        "name": name,
        "model": {"arch": asdict(tagger.model.arch), "front_end": asdict(tagger.model.front_end)},
        "tags": len(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "params": tagger.num_parameters,
        "dropped": list(converted.dropped),
        "origin": origin,
    }


def _checked_name(name: str | None, base: str, family: str) -> str:
    """The tagger's name, made of the file's where none is given."""
    made = re.sub(r"[^a-z0-9]+", "_", base.rsplit(".", 1)[0].lower()).strip("_")
    name = name or (made if MODEL_NAME.fullmatch(made) else f"{family}_{made}")
    if not MODEL_NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: a name is a small letter, then small letters, digits or _")
    return name


def _checked_labels(labels: str) -> Literal["single", "multi"]:
    kinds: dict[str, Literal["single", "multi"]] = {"single": "single", "multi": "multi"}
    if labels not in kinds:
        raise ValueError(f"--labels {labels!r}: must be single (one tag a clip) or multi (any number)")
    return kinds[labels]


def _require_new(out: str) -> None:
    if not object_store.is_local(out):
        object_store.check_storage(out.rstrip("/").rsplit("/", 1)[0])
    if object_store.exists(out):
        raise ValueError(f"OUT {out!r}: is there already; choose a new folder or URI")


def _read(uri: str, what: str) -> bytes:
    try:
        with object_store.FsspecFiles().open(uri) as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{what} {uri!r}: no such file") from None


def _load(data: bytes, file: str) -> Any:
    """What a file holds, read without running code from it."""
    ending = Path(file).suffix
    if ending not in (*PICKLES, ".safetensors"):
        raise ValueError(f"weights {file!r}: must end in {', '.join(PICKLES)} or .safetensors")
    try:
        if ending == ".safetensors":
            return load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"weights {file!r}: no safetensors file, or a damaged one ({error})") from None
    except pickle.UnpicklingError as error:
        needs = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise ValueError(_needs_code(file, needs[1]) if needs else _damaged(file, error)) from None
    except Exception as error:  # torch answers to damage with whatever its reader runs into
        raise ValueError(_damaged(file, error)) from None


def _damaged(file: str, error: Exception) -> str:
    inner = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))  # torch wraps it in advice to read it unsafely
    words = f"{type(error).__name__}: {inner[1] if inner else error}".splitlines()[0][:200]
    return f"weights {file!r}: no file that torch.save wrote, or a damaged one ({words})"


def _needs_code(file: str, what: str) -> str:
    safe = str(Path(file).with_suffix(".safetensors").name)
    return (
        f"weights {file!r}: holds more than tensors ({what}), and reading that can run any code. If you trust it, in a "
        "place with nothing to lose:\n"
        "python -c 'import torch; from safetensors.torch import save_file;\n"
        f'state = torch.load("{Path(file).name}", map_location="cpu", weights_only=False)["state_dict"];\n'
        f'save_file({{name: tensor.clone() for name, tensor in state.items()}}, "{safe}")\'\n'
        f'(["state_dict"] or whatever it keeps its state dict under), then import {safe}'
    )


def _state_dict(loaded: Any, file: str) -> dict[str, Tensor]:
    """The state dict within what was loaded, without what wraps it and its names."""
    while isinstance(loaded, dict) and (inner := next((key for key in CONTAINERS if key in loaded), None)):
        loaded = loaded[inner]
    other = [key for key, value in loaded.items() if not torch.is_tensor(value)] if isinstance(loaded, dict) else []
    if not isinstance(loaded, dict) or not loaded or other:
        found = f"its {other[0]!r} is no tensor" if other else f"found {type(loaded).__name__} without tensors"
        raise ValueError(
            f"weights {file!r}: hold no state dict, neither bare nor under {', '.join(CONTAINERS)}; {found}"
        )
    state = {str(name): tensor for name, tensor in loaded.items()}
    lost = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if lost:
        raise ValueError(f"weights {file!r}: {lost[0]} holds numbers that are not finite; the file is of no use")
    while wrapper := next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _convert(state: dict[str, Tensor], base: str, family: str, strides: str | None) -> Converted:
    """The weights in our terms; what is wrong with them is said with the file's name."""
    told = None
    if family in STRIDED:
        told = _strides(strides)
        efficientat.check_file_name(base, told)
    elif strides:
        raise ValueError(f"--strides {strides}: for {' and '.join(STRIDED)} only, not for {family}")
    try:
        converted: Converted = converter(family).convert(state, **({"strides": told} if told else {}))
    except ValueError as error:
        raise ValueError(f"{base}: {error}") from None
    found = converted.model.arch.family
    if family in STRIDED and found != family:
        raise ValueError(f"--family {family}: {base} is a network of the family {found}")
    return converted


def _strides(said: str | None) -> efficientat.Strides:
    if said is None:
        return efficientat.DEFAULT_STRIDES
    if not re.fullmatch("[12]{4}", said):
        raise ValueError(f"--strides {said!r}: must be four times 1 or 2, such as 2221")
    first, second, third, fourth = (int(stride) for stride in said)
    return first, second, third, fourth


def _tags(num_classes: int, file: str | None) -> tuple[str, ...]:
    """The names of the classes, in their order."""
    if file is None and num_classes != AUDIOSET:
        raise ValueError(
            f"these weights tell {num_classes} classes apart; name them with --tags FILE, one tag per line"
        )
    if file is None:
        return tuple((resources.files("workloads.models.official") / "audioset_tags.txt").read_text().splitlines())
    text = _read(file, "--tags").decode("utf-8-sig", errors="replace")
    tags = (
        _column(text, file) if file.endswith(".csv") else [line.strip() for line in text.splitlines() if line.strip()]
    )
    if len(tags) != num_classes:
        raise ValueError(f"--tags {file!r}: names {len(tags)} tags, the weights tell {num_classes} classes apart")
    twice = [tag for number, tag in enumerate(tags) if tag in tags[:number]]
    if twice:
        raise ValueError(f"--tags {file!r}: {twice[0]!r} is there twice; every class needs a name of its own")
    return tuple(tags)


def _column(text: str, file: str) -> list[str]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or "display_name" not in rows[0]:
        raise ValueError(f"--tags {file!r}: a CSV file needs a column display_name, in the order of the classes")
    if "index" in rows[0] and [row["index"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(f"--tags {file!r}: its column index must count from 0, row by row")
    return [row["display_name"] for row in rows]


def _write(tagger: Tagger, out: str, name: str, origin: dict[str, str]) -> str:
    """A finished checkpoint at `out`, as a run delivers its taggers, but without scores and recipe."""
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
