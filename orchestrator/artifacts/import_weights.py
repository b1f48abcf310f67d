"""Imports published weights as taggers: from a weights file to a published checkpoint.

Owns the recorded origin; `weights_file.py` reads the file, `workloads/models/official` maps names and shapes of
tensors, `workloads/data/tag_names.py` names the classes.
"""

import hashlib
import re
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

from orchestrator.artifacts.import_encoder import check_encoder_options, import_encoder
from orchestrator.artifacts.weights_file import FoundWeights, find_weights, load_weights_file
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.recipe import MODEL_NAME
from workloads.data.tag_names import tag_names
from workloads.models.official import efficientat
from workloads.models.official.converted import Converted
from workloads.models.official.projects import converter, source_of
from workloads.models.official.to_tagger import to_tagger
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.tensor_files import read_weights_file
from workloads.runtime.text import name_some

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

    Of a family whose networks know no tags, `out` is a file of initial weights (`import_encoder.py`).
    `tags` is a file with one tag per line, or a CSV with a column display_name; 527 classes need none. Raises
    ValueError for files that are damaged, hold more than tensors or numbers that are not finite, for weights that do
    not fit `family`, for another number of tags than classes, and where `out` exists.
    """
    checked_labels = None if labels is None else _checked_labels(labels)
    source = source_of(family)
    if not source.knows_tags:
        check_encoder_options(family, out, tags=tags, name=name, strides=strides, labels=labels)
        _require_new(out)
        return import_encoder(_read(file, "weights"), file, out, family=family, source=source)
    base = file.rstrip("/").rsplit("/", 1)[-1]
    name = _checked_name(name, base, family)
    checked_strides = _checked_strides(strides, base, family)
    _require_new(out)
    data = _read(file, "weights")
    marks = converter(family).MARKS
    found = find_weights(load_weights_file(data, file), marks, file, source.project)
    converted = _convert(found, base, family, checked_strides)
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
    dropped = [*converted.dropped, *found.left_over]
    return {"checkpoint": uri, **_summary(tagger, name), "dropped": dropped, "origin": origin}


def _summary(tagger: Tagger, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"arch": asdict(tagger.model.arch), "front_end": asdict(tagger.model.front_end)},
        "tags": len(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "params": tagger.num_parameters,
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
        with FsspecFiles().open(uri) as file:
            return read_weights_file(file, f"{what} {uri!r}")
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{what} {uri!r}: no such file") from None


def _convert(found: FoundWeights, base: str, family: str, strides: efficientat.Strides | None) -> Converted:
    """The weights under our names of tensors. Raises ValueError with the file's name where they do not fit `family`."""
    try:
        converted: Converted = converter(family).convert(found.state, **({"strides": strides} if strides else {}))
    except ValueError as error:
        rest = f"; left over in the file: {name_some(found.left_over)}" if found.left_over else ""
        raise ValueError(f"{base}: {error}{rest}") from None
    actual = converted.model.arch.family
    if family in STRIDED and actual != family:
        raise ValueError(f"--family {family}: {base} is a network of the family {actual}; use --family {actual}")
    return converted


def _checked_strides(strides: str | None, base: str, family: str) -> efficientat.Strides | None:
    """The strides of a family whose weights do not show them; None for the others, which take no option."""
    if family not in STRIDED:
        if strides:
            raise ValueError(f"--strides {strides}: for {' and '.join(STRIDED)} only, not for {family}")
        return None
    checked = efficientat.DEFAULT_STRIDES
    if strides is not None:
        if not re.fullmatch("[12]{4}", strides):
            raise ValueError(f"--strides {strides!r}: must be four times 1 or 2, such as 2221")
        first, second, third, fourth = (int(stride) for stride in strides)
        checked = first, second, third, fourth
    efficientat.check_file_name(base, checked)
    return checked


def _tags(num_classes: int, file: str | None) -> tuple[str, ...]:
    """The names of the classes, in their order."""
    if file is None:
        return tag_names(num_classes, "these weights")
    return tag_names(num_classes, "the weights", file=file, content=_read(file, "--tags"))


def _write(tagger: Tagger, out: str, name: str, origin: dict[str, str]) -> str:
    """Publish a tagger at `out`, in the format in which a run delivers its taggers, without scores and recipe."""
    state = {
        "kind": "tagger",
        "name": name,
        "model": asdict(tagger.model),
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "long_clips": "windows",
        "clip_rate": tagger.clip_rate,
        "origin": origin,
    }
    with scratch_folder() as scratch:
        folder = checkpoint.write(scratch / "tagger", tensors={"weights": tagger.state_dict()}, state=state)
        return published_folders.publish(folder, out)
