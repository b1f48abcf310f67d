"""Weights that others published: which project's file reads them. Imports nothing heavy.

Each file offers `convert(state) -> Converted` (`converted.py`): from the project's own names to ours, with the
architecture read off names and shapes. Nothing of the projects' code is here.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Source(NamedTuple):
    """Who published a family's weights, which file reads them, and what may be done with them."""

    project: str
    module: str
    licence: str


SOURCES: dict[str, Source] = {
    "mn": Source("fschmid56/EfficientAT", "efficientat", "MIT"),
    "dymn": Source("fschmid56/EfficientAT", "efficientat", "MIT"),
    "ced": Source("RicherMans/CED", "ced", "GPL-3.0 (its model cards say Apache-2.0)"),
    "ast": Source("YuanGongND/ast", "ast", "BSD-3-Clause"),
    "timm": Source("huggingface/pytorch-image-models", "timm", "as the model's card says"),
}


def published_by(family: str) -> Source:
    """Who published weights of this family; ValueError, with the known ones, for others."""
    if family not in SOURCES:
        raise ValueError(f"--family {family!r}: no such family; known are {', '.join(SOURCES)}")
    return SOURCES[family]


def converter(family: str) -> ModuleType:
    """The file whose `convert` reads weights of this family."""
    return import_module(f"workloads.models.official.{published_by(family).module}")
