"""Exports a published tagger to a folder for Hugging Face's hub: what transformers loads, with a card.

`workloads/export/hub_ast.py` knows transformers' names and settings of the one family that it has a class for,
`hub_code.py` makes code of the others; this module owns the files.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from orchestrator.artifacts.drafts import draft_folder
from orchestrator.artifacts.export import file_facts, load_with_interval
from orchestrator.artifacts.model_card import card_environment, write_card
from workloads.export.hub_ast import (
    difference_from_transformers,
    hub_config,
    hub_preprocessor,
    hub_weights,
    why_no_class,
)
from workloads.export.hub_code import (
    CONFIG_CLASS,
    MODEL_CLASS,
    MODELING,
    code_config,
    code_preprocessor,
    difference_from_code,
    hub_network,
)
from workloads.models.official.hub_config import OWN
from workloads.models.size import model_size
from workloads.models.tagger import Tagger
from workloads.runtime.json_files import json_text
from workloads.runtime.version import VERSION

WEIGHTS, CARD = "model.safetensors", "README.md"


def check_hub_target(out: str) -> Path:
    """The folder to write; ValueError where it exists, has no parent, or transformers is missing."""
    folder = Path(out).expanduser()
    if find_spec("transformers") is None:
        raise ValueError("--to hub: needs transformers, which checks the folder; pip install 'antiphon[hub]'")
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"OUT {out!r}: exists already; choose another name or remove it")
    if not folder.parent.is_dir():
        raise ValueError(f"OUT {out!r}: there is no folder {folder.parent}; create it first")
    return folder


def export_hub(uri: str, folder: Path) -> dict[str, Any]:
    """Write the folder, which appears complete or not at all; returns what the card reports.

    Raises ValueError for a folder that holds no tagger, and where transformers' logits differ from the tagger's.
    """
    tagger, state, interval = load_with_interval(uri)
    shape: dict[str, Any] = {
        "num_classes": len(tagger.tags),
        "clip_seconds": tagger.clip_seconds,
        "clip_rate": tagger.clip_rate,
    }
    size = model_size(tagger.model, **shape)
    own_code = why_no_class(tagger)
    with draft_folder(folder.parent) as scratch:
        draft = scratch / folder.name
        draft.mkdir()
        difference = _write_code(tagger, state, draft) if own_code else _write_ast(tagger, state, draft)
        report = {
            "file": folder.name,
            "to": "hub",
            "own_code": own_code,
            "facts": file_facts(tagger, state, inside=False),
            "largest_difference": difference,
            "transformers": version("transformers"),
            "bytes": (draft / WEIGHTS).stat().st_size,
            "params": size.params,
            "macs": size.macs,
            "interval": interval,
        }
        write_card(report, state, draft / CARD, template="hub_card.md.j2")
        os.replace(draft, folder)
    return report | {"checkpoint": uri, "files": [str(folder / name) for name in sorted(os.listdir(folder))]}


def _write_ast(tagger: Tagger, state: dict[str, Any], draft: Path) -> float:
    """What transformers' own class reads; returns the largest difference of its logits."""
    save_file(hub_weights(tagger), draft / WEIGHTS, metadata={"format": "pt"})
    _write_json(draft / "config.json", hub_config(tagger, long_clips=state["long_clips"]))
    _write_json(draft / "preprocessor_config.json", hub_preprocessor(tagger))
    return difference_from_transformers(tagger, str(draft))


def _write_code(tagger: Tagger, state: dict[str, Any], draft: Path) -> float:
    """Code, its tensors and what transformers needs to find it; returns the largest difference of its logits."""
    network, long_clips = hub_network(tagger), state["long_clips"]
    save_file(network.tensors, draft / WEIGHTS, metadata={"format": "pt"})
    _write_json(draft / "config.json", code_config(tagger, name=state["name"], long_clips=long_clips))
    _write_json(draft / "preprocessor_config.json", code_preprocessor(tagger))
    code = (
        card_environment()
        .get_template(f"{MODELING}.py.j2")
        .render(
            name=state["name"],
            version=VERSION,
            length=round(tagger.clip_seconds * tagger.clip_rate),
            rate=tagger.clip_rate,
            long_clips=long_clips,
            labels=tagger.labels,
            model_type=OWN,
            config_class=CONFIG_CLASS,
            model_class=MODEL_CLASS,
            tensors=network.tensors,
            learned=network.learned,
            source=network.source,
        )
    )
    (draft / f"{MODELING}.py").write_text(code, encoding="utf-8")
    return difference_from_code(tagger, draft, long_clips=long_clips)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json_text(content, indent=1) + "\n", encoding="utf-8")
