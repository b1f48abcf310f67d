"""The projects that published weights, and which file reads those of each. Imports nothing heavy.

Each file offers `convert(state) -> Converted` (`converted.py`): from the project's names to ours, with the
architecture inferred from names and shapes; and `MARKS`, of which every state dict has one name. No code of the
projects is here.
"""

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Source(NamedTuple):
    """The project that published a family's weights, the file that reads them, and their licence."""

    project: str
    module: str
    licence: str
    knows_tags: bool = True  # else `convert` gives a `ConvertedEncoder`: initial weights, no tagger


SOURCES: dict[str, Source] = {
    "mn": Source("fschmid56/EfficientAT", "efficientat", "MIT"),
    "dymn": Source("fschmid56/EfficientAT", "efficientat", "MIT"),
    "frame_mn": Source("fschmid56/PretrainedSED", "pretrainedsed", "MIT"),
    "ced": Source("RicherMans/CED", "ced", "GPL-3.0 (its model cards say Apache-2.0)"),
    "passt": Source("kkoutini/PaSST", "passt", "Apache-2.0"),
    "eat": Source("cwx-worst-one/EAT, ta012/SSLAM", "eat", "MIT"),
    "ast": Source("YuanGongND/ast", "ast", "BSD-3-Clause"),
    "timm": Source("huggingface/pytorch-image-models", "timm", "as the model's card says"),
    "wav2vec2": Source(
        "facebookresearch/fairseq", "wav2vec2", "MIT (of others' copies: as their cards say)", knows_tags=False
    ),
}


def source_of(family: str) -> Source:
    """The source of a family's published weights; ValueError, listing the known families, for others."""
    if family not in SOURCES:
        raise ValueError(f"--family {family!r}: no such family; known are {', '.join(SOURCES)}")
    return SOURCES[family]


def converter(family: str) -> ModuleType:
    """The module whose `convert` reads weights of this family."""
    return import_module(f"workloads.models.official.{source_of(family).module}")
