"""Reads a folder in the form of Hugging Face's hub: its configuration, its weights' file, the licence of its card.

The folder lies at any URI, or on the hub (`hf://org/name`), from which it is downloaded into the cache that Hugging
Face's own tools share. Does not depend on what the configuration means (`workloads/models/official/hub_config.py`).
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime.checkpoint import PICKLES
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.json_files import parse_json
from workloads.runtime.opener import read_bounded
from workloads.runtime.text import name_some

HUB = "hf://"
HUB_ID = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
CONFIG, PREPROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are preferred
PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAX_TEXT = 10_000_000  # bytes of a configuration or a card
HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---", re.MULTILINE | re.DOTALL)  # of a card: YAML between lines of dashes
MAX_LICENCE = 200  # characters of its name
AS_CARD = "as the model's card says"


class HubFolder(NamedTuple):
    """What a folder holds beside its weights, and their URI."""

    weights: str
    name: str  # of the folder, or org/name on the hub
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    licence: str


def find_hub_folder(uri: str) -> HubFolder | None:
    """The folder at a URI or a hub id; None where no config.json is below it, as where the URI is a weights file.

    Raises ValueError for a hub id that cannot be downloaded, with what to do, and for a folder without one file of
    weights.
    """
    folder = _download(uri) if uri.startswith(HUB) else uri.rstrip("/") or uri
    if object_store.is_local(folder):
        folder = os.path.abspath(Path(folder.removeprefix("file://")).expanduser())  # for "." too has a name
    is_file = Path(folder).suffix in (*PICKLES, ".safetensors") and not Path(folder).is_dir()
    names = [] if is_file else object_store.list_names(folder)
    if CONFIG not in names:
        if Path(folder).is_dir():
            raise ValueError(f"{uri}: {_why_no_hub_folder(names)}")
        return None
    weights = next((name for name in WEIGHTS if name in names), None)
    if weights is None:
        in_parts = next((name for name in PARTS if name in names), None)
        why = f"its weights are in parts ({in_parts}), which cannot be read" if in_parts else f"holds none of {WEIGHTS}"
        raise ValueError(f"{uri}: {why}; save it again as one {WEIGHTS[0]}")
    return HubFolder(
        weights=object_store.join(folder, weights),
        name=uri.removeprefix(HUB) if uri.startswith(HUB) else os.path.basename(folder),
        config=_json(folder, CONFIG),
        preprocessor=_json(folder, PREPROCESSOR) if PREPROCESSOR in names else {},
        licence=_licence(folder) if CARD in names else AS_CARD,
    )


def _download(uri: str) -> str:
    """The folder into which a hub repository's configuration and weights were downloaded, or lay already."""
    found = HUB_ID.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri!r}: a hub id is hf://org/name, or hf://org/name@revision")
    from huggingface_hub import snapshot_download

    repository, revision = found[1], found[2]
    try:
        return snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, PREPROCESSOR, CARD, *WEIGHTS, *PARTS]
        )
    except Exception as error:  # the library's own, OSError, ValueError, and those of its HTTP client, which changes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{uri}: cannot be downloaded ({reason}). Without a network copy the folder by other means and import "
            f"that: `hf download {repository} --local-dir FOLDER` where there is one"
        ) from None


def _why_no_hub_folder(names: list[str]) -> str:
    """Why a folder without a configuration cannot be imported, and what can be instead."""
    if MARKER in names:
        return "is a tagger already, or a checkpoint; give it to the commands as it is"
    files = [name for name in names if Path(name).suffix in (*PICKLES, ".safetensors")]
    return f"holds no {CONFIG}; import a file of weights instead" + (f": {name_some(files)}" if files else "")


def _content(folder: str, name: str) -> bytes:
    with FsspecFiles().open(object_store.join(folder, name)) as file:
        content = read_bounded(file, MAX_TEXT)
    if content is None:
        raise ValueError(f"{folder}/{name}: larger than {MAX_TEXT:,} bytes; is it the right file?")
    return content


def _json(folder: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = parse_json(_content(folder, name), f"{folder}/{name}")
    return value


def _licence(folder: str) -> str:
    """The licence in the head of a model card; its own name where the hub knows no such licence ("other")."""
    found = HEAD.match(_content(folder, CARD).decode("utf-8-sig", errors="replace"))
    try:
        said = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, RecursionError, ValueError):  # ValueError: of dates such as 2024-13-45
        return AS_CARD
    said = said if isinstance(said, dict) else {}
    licence = said.get("license_name") if said.get("license") == "other" else None
    licence = licence or said.get("license") or AS_CARD
    names = licence if isinstance(licence, list) else [licence]
    return " ".join(", ".join(map(str, names)).split())[:MAX_LICENCE]
