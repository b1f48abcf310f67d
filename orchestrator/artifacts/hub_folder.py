"""Reads a folder in the form of Hugging Face's hub: its configuration, its weights' file, the licence of its card.

The folder lies at any URI, or on the hub (`hf://org/name`), from which it is downloaded into the cache that Hugging
Face's own tools share. Does not depend on what the configuration means (`workloads/models/official/hub_config.py`).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime.checkpoint import PICKLES
from workloads.runtime.json_files import parse_json
from workloads.runtime.opener import read_bounded

HUB = "hf://"
HUB_ID = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
CONFIG, PREPROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are preferred
PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAX_TEXT = 10_000_000  # bytes of a configuration or a card
LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w. -]+)", re.MULTILINE)
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
    folder = _download(uri) if uri.startswith(HUB) else uri.rstrip("/")
    is_file = not uri.startswith(HUB) and Path(uri).suffix in (*PICKLES, ".safetensors")
    names = [] if is_file else object_store.list_names(folder)
    if CONFIG not in names:
        if uri.startswith(HUB):
            raise ValueError(f"{uri}: holds no {CONFIG}; import one of its files of weights with --family")
        return None
    weights = next((name for name in WEIGHTS if name in names), None)
    if weights is None:
        in_parts = next((name for name in PARTS if name in names), None)
        why = f"its weights are in parts ({in_parts}), which cannot be read" if in_parts else f"holds none of {WEIGHTS}"
        raise ValueError(f"{uri}: {why}; save it again as one {WEIGHTS[0]}")
    return HubFolder(
        weights=object_store.join(folder, weights),
        name=uri.removeprefix(HUB) if uri.startswith(HUB) else folder.rsplit("/", 1)[-1],
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
    from huggingface_hub.errors import HfHubHTTPError

    repository, revision = found[1], found[2]
    try:
        return snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, PREPROCESSOR, CARD, *WEIGHTS, *PARTS]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:  # the library raises all three
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{uri}: cannot be downloaded ({reason}). Without a network copy the folder by other means and import "
            f"that: `hf download {repository} --local-dir FOLDER` where there is one"
        ) from None


def _text(folder: str, name: str) -> str:
    with FsspecFiles().open(object_store.join(folder, name)) as file:
        content = read_bounded(file, MAX_TEXT)
    if content is None:
        raise ValueError(f"{folder}/{name}: larger than {MAX_TEXT:,} bytes; is it the right file?")
    return content.decode("utf-8", errors="replace")


def _json(folder: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = parse_json(_text(folder, name), f"{folder}/{name}")
    return value


def _licence(folder: str) -> str:
    """The licence in the head of a model card, which stands between two lines of dashes."""
    parts = _text(folder, CARD).split("---\n", 2)
    found = LICENCE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return found[1].strip() if found else AS_CARD
