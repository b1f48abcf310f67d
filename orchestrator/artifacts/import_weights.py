"""Imports published weights as taggers: from a weights file to a published checkpoint.

Owns the recorded origin; `weights_file.py` reads the file, `hub_folder.py` what lies beside it in a folder of the hub,
`workloads/models/official` maps names and shapes of tensors, `workloads/data/tag_names.py` names the classes.
"""

import hashlib
import re
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from orchestrator.artifacts.guess_family import guess_family
from orchestrator.artifacts.hub_folder import HubFolder, find_hub_folder
from orchestrator.artifacts.import_encoder import check_encoder_options, import_encoder
from orchestrator.artifacts.import_own import import_own
from orchestrator.artifacts.weights_file import FoundWeights, find_weights, load_weights_file, read_file
from orchestrator.storage import object_store, published_folders
from workloads.config.recipe import MODEL_NAME
from workloads.data.tag_names import tag_names, with_whole_names
from workloads.models.official import efficientat, passt
from workloads.models.official.converted import Converted
from workloads.models.official.hub_config import OWN, HubConfig, read_hub_config
from workloads.models.official.projects import converter, source_of
from workloads.models.official.to_tagger import to_tagger
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.text import name_some
from workloads.runtime.version import VERSION

STRIDED = ("mn", "dymn")  # the weights of these families do not show their strides


def import_weights(
    file: str,
    out: str,
    *,
    family: str | None = None,
    tags: str | None = None,
    name: str | None = None,
    strides: str | None = None,
    labels: str | None = None,
) -> dict[str, Any]:
    """Write the published weights in `file` as a tagger at `out`, a new folder or URI; returns a summary of it.

    `file` is a file, a folder in the form of Hugging Face's hub, or hf://org/name. Without `family` it is the one whose
    names and shapes these are. Of a family whose networks know no tags, `out` is a file of initial weights
    (`import_encoder.py`). `tags` is a file with one tag per line, or a CSV with a column display_name; 527 classes and
    hub folders with tags of their own need none. Raises ValueError for files that are damaged, hold more than tensors
    or numbers that are not finite, for weights that do not fit `family`, or fit none or several without it, for another
    number of tags than classes, and where `out` exists.
    """
    options = {"tags": tags, "name": name, "strides": strides, "labels": labels}
    checked_labels = None if labels is None else _checked_labels(labels)
    if family is not None:  # before anything is read
        _check_options(family, out, options)
    _require_new(out)
    folder = find_hub_folder(file)
    if folder is not None and folder.config.get("model_type") == OWN:
        return import_own(folder, out, family=family, **options)
    published = _read_published(file, folder)
    if family is None:
        family = published.family or guess_family(published.loaded, published.base)
        _check_options(family, out, options)
    elif published.hub and published.hub.family != family:
        raise ValueError(f"--family {family}: config.json in {file!r} says that it is {published.hub.family}")
    source = source_of(family)
    marks = published.hub.marks if published.hub and published.hub.marks is not None else converter(family).MARKS
    found = find_weights(published.loaded, marks, published.base, source.project)
    if not source.knows_tags:
        return import_encoder(found, out, family=family, origin=published.origin(family))
    name = _checked_name(name, published.title, family)
    checked_strides = _checked_strides(strides, published.base, family)
    settings = {"strides": checked_strides} if checked_strides else published.hub.settings if published.hub else {}
    converted = _convert(found, published.base, family, settings)
    labels_of_tagger = checked_labels or (published.hub.labels if published.hub else None)
    tagger = to_tagger(converted, _tags(converted.num_classes, tags, published.hub), name=name, labels=labels_of_tagger)
    origin = published.origin(family) | {"imported_with": f"antiphon {VERSION}"}
    uri = _write(tagger, out, name, origin, published.hub.long_clips if published.hub else "windows")
    dropped = [*converted.dropped, *found.left_over]
    return {"checkpoint": uri, **_summary(tagger, name), "dropped": dropped, "origin": origin}


class Published(NamedTuple):
    """What was read: the content of a file of weights, and what the hub folder around it says, if there is one."""

    loaded: Any
    base: str  # the file's name, for messages
    title: str  # what the tagger's name is made of
    digest: str
    hub: HubConfig | None
    folder: HubFolder | None

    @property
    def family(self) -> str | None:
        return self.hub.family if self.hub else None

    def origin(self, family: str) -> dict[str, str]:
        """Where the weights come from, for the tagger's state and the user."""
        source = source_of(family)
        where = {"project": source.project, "family": family, "file": self.base, "sha256": self.digest}
        if self.folder is None:
            return where | {"licence": source.licence}
        return where | {"project": self.folder.name, "licence": self.folder.licence}


def _read_published(file: str, folder: HubFolder | None) -> Published:
    weights = file if folder is None else folder.weights
    hub = None if folder is None else read_hub_config(folder.config, folder.preprocessor)
    data = read_file(weights, "weights")
    base = weights.rstrip("/").rsplit("/", 1)[-1]
    title = base.rsplit(".", 1)[0] if folder is None else folder.name.rsplit("/", 1)[-1]
    return Published(load_weights_file(data, weights), base, title, hashlib.sha256(data).hexdigest(), hub, folder)


def _check_options(family: str, out: str, options: dict[str, str | None]) -> None:
    """ValueError for options that do not go with the family."""
    if not source_of(family).knows_tags:
        check_encoder_options(family, out, **options)
    elif options["strides"] and family not in STRIDED:
        raise ValueError(f"--strides {options['strides']}: for {' and '.join(STRIDED)} only, not for {family}")


def _summary(tagger: Tagger, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"arch": asdict(tagger.model.arch), "front_end": asdict(tagger.model.front_end)},
        "tags": len(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "params": tagger.num_parameters,
    }


def _checked_name(name: str | None, title: str, family: str) -> str:
    """The tagger's name; by default derived from that of the file or folder."""
    derived = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
    name = name or (derived if MODEL_NAME.fullmatch(derived) else f"{family}_{derived}".rstrip("_"))
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


def _convert(found: FoundWeights, base: str, family: str, settings: dict[str, Any]) -> Converted:
    """The weights under our names of tensors. Raises ValueError with the file's name where they do not fit `family`."""
    try:
        converted: Converted = converter(family).convert(found.state, **settings)
    except ValueError as error:
        rest = f"; left over in the file: {name_some(found.left_over)}" if found.left_over else ""
        raise ValueError(f"{base}: {error}{rest}") from None
    actual = converted.model.arch.family
    if family in STRIDED and actual != family:
        raise ValueError(f"--family {family}: {base} is a network of the family {actual}; use --family {actual}")
    return converted


def _checked_strides(strides: str | None, base: str, family: str) -> efficientat.Strides | None:
    """The strides of a family whose weights do not show them; None for the others, which take no option."""
    if family == "passt":
        passt.check_file_name(base)
    if family not in STRIDED:
        return None
    checked = efficientat.DEFAULT_STRIDES
    if strides is not None:
        if not re.fullmatch("[12]{4}", strides):
            raise ValueError(f"--strides {strides!r}: must be four times 1 or 2, such as 2221")
        first, second, third, fourth = (int(stride) for stride in strides)
        checked = first, second, third, fourth
    efficientat.check_file_name(base, checked)
    return checked


def _tags(num_classes: int, file: str | None, hub: HubConfig | None) -> tuple[str, ...]:
    """The names of the classes, in their order: those of a file, of the hub folder, or AudioSet's."""
    if file is not None:
        return tag_names(num_classes, "the weights", file=file, content=read_file(file, "--tags"))
    if hub is None or hub.tags is None:
        return tag_names(num_classes, "these weights")
    tags = with_whole_names(hub.tags)
    if not all(tag.strip() for tag in tags):
        raise ValueError("config.json: a class has an empty name; name them with --tags FILE, one tag per line")
    if len(tags) != num_classes or len(set(tags)) < len(tags):
        raise ValueError(
            f"config.json: names {len(set(tags))} different tags, the weights have {num_classes} classes; "
            "name them with --tags FILE, one tag per line"
        )
    return tags


def _write(tagger: Tagger, out: str, name: str, origin: dict[str, str], long_clips: str) -> str:
    """Publish a tagger at `out`, in the format in which a run delivers its taggers, without scores and recipe."""
    state = {
        "kind": "tagger",
        "name": name,
        "model": asdict(tagger.model),
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "clip_seconds": tagger.clip_seconds,
        "long_clips": long_clips,
        "clip_rate": tagger.clip_rate,
        "origin": origin,
    }
    with scratch_folder() as scratch:
        folder = checkpoint.write(scratch / "tagger", tensors={"weights": tagger.state_dict()}, state=state)
        return published_folders.publish(folder, out)
