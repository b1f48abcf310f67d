"""Exports a published AST tagger to a folder for Hugging Face's hub: what transformers loads, with a card.

`workloads/export/hub_ast.py` knows transformers' names and settings; this module owns the files.
"""

import os
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from orchestrator.artifacts.export import file_facts, load_with_interval
from orchestrator.artifacts.model_card import write_card
from workloads.export.hub_ast import (
    difference_from_transformers,
    hub_config,
    hub_preprocessor,
    hub_weights,
    why_not_hub,
)
from workloads.models.size import model_size
from workloads.runtime.json_files import json_text

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

    Raises ValueError for a folder that holds no tagger, a tagger that transformers has no class for, and where
    transformers' logits differ from the tagger's.
    """
    tagger, state, interval = load_with_interval(uri)
    if reason := why_not_hub(tagger):
        raise ValueError(f"--to hub: {reason}")
    shape: dict[str, Any] = {
        "num_classes": len(tagger.tags),
        "clip_seconds": tagger.clip_seconds,
        "clip_rate": tagger.clip_rate,
    }
    size = model_size(tagger.model, **shape)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        draft = Path(scratch) / folder.name
        draft.mkdir()
        save_file(hub_weights(tagger), draft / WEIGHTS, metadata={"format": "pt"})
        for name, content in (("config", hub_config(tagger)), ("preprocessor_config", hub_preprocessor(tagger))):
            (draft / f"{name}.json").write_text(json_text(content, indent=1) + "\n", encoding="utf-8")
        report = {
            "file": folder.name,
            "to": "hub",
            "facts": file_facts(tagger, state, inside=False),
            "largest_difference": difference_from_transformers(tagger, str(draft)),
            "transformers": version("transformers"),
            "bytes": (draft / WEIGHTS).stat().st_size,
            "params": size.params,
            "macs": size.macs,
            "interval": interval,
        }
        write_card(report, state, draft / CARD, template="hub_card.md.j2")
        os.replace(draft, folder)
    return report | {"checkpoint": uri, "files": [str(folder / name) for name in sorted(os.listdir(folder))]}
