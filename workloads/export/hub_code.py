"""A tagger of any family in the form of Hugging Face's hub: its network as source that needs only torch, and its
tensors.

transformers has no class for these networks, so a folder brings its code along. That code is what torch.export records,
as Python (`graph_code.py`): unlike a TorchScript or torch.export archive it can be read before it is trusted, does not
depend on a format that changes with torch, and leaves all weights in model.safetensors under the tagger's own names,
from which `antiphon models import` builds the tagger again. Does not depend on transformers but for the check, nor on
how files are written.

Axes: B waveforms, N windows, T samples, L samples of a window, C tags.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from workloads.export.graph_code import function_source, stored_tensors
from workloads.export.hub_ast import PROBLEMS
from workloads.export.whole_sounds import WholeSounds, Windows
from workloads.models.official.hub_config import OWN
from workloads.models.tagger import Tagger

MODELING, CONFIG_CLASS, MODEL_CLASS = "modeling_antiphon", "AntiphonConfig", "AntiphonForAudioClassification"
MOST_DIFFERENCE = 1e-4  # of a logit, in units of the largest logit or of 1
LENGTHS = (0.3, 1.0, 2.4)  # of the waveforms that are compared, in clips


class HubNetwork(NamedTuple):
    """The source of `network(tensors, x_NL, sound_NL)`, and all tensors, with those that training changed by name."""

    source: str
    tensors: dict[str, Tensor]
    learned: frozenset[str]


def hub_network(tagger: Tagger) -> HubNetwork:
    """A tagger's network and front end as source. Raises NoSource, which names the operation, where it has none."""
    length = round(tagger.clip_seconds * tagger.clip_rate)
    example = torch.zeros(3, length), torch.ones(3, length, dtype=torch.bool)
    with torch.no_grad():
        any_number = {0: Dim.DYNAMIC}
        program = torch.export.export(
            Windows(tagger).eval(), example, dynamic_shapes=(any_number, any_number), strict=False
        )
    tensors = stored_tensors(program) | tagger.state_dict()
    return HubNetwork(
        function_source(program, name="network", arguments=("x_NL", "sound_NL")),
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        frozenset(name for name, _ in tagger.named_parameters()),
    )


def code_config(tagger: Tagger, *, name: str, long_clips: str) -> dict[str, Any]:
    """config.json; what is under "antiphon" builds the tagger again."""
    return {
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{MODELING}.{CONFIG_CLASS}",
            "AutoModelForAudioClassification": f"{MODELING}.{MODEL_CLASS}",
        },
        "model_type": OWN,
        "problem_type": PROBLEMS[tagger.labels],
        "id2label": {str(number): tag for number, tag in enumerate(tagger.tags)},
        "label2id": {tag: number for number, tag in enumerate(tagger.tags)},
        "dtype": "float32",
        OWN: {
            "name": name,
            "model": {"arch": asdict(tagger.model.arch), "front_end": asdict(tagger.model.front_end)},
            "clip_seconds": tagger.clip_seconds,
            "clip_rate": tagger.clip_rate,
            "long_clips": long_clips,
        },
    }


def code_preprocessor(tagger: Tagger) -> dict[str, Any]:
    """preprocessor_config.json: transformers' own extractor that leaves waveforms as they are, and pads a batch."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": tagger.clip_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": False,
        "return_attention_mask": True,
    }


def difference_from_code(tagger: Tagger, folder: Path, *, long_clips: str) -> float:
    """The largest difference between the logits of the folder's code and the tagger's, of waveforms of LENGTHS.

    ValueError where it exceeds MOST_DIFFERENCE.
    """
    from transformers import Wav2Vec2FeatureExtractor

    with _imported(folder / f"{MODELING}.py") as module:
        model = getattr(module, MODEL_CLASS).from_pretrained(str(folder)).eval()
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(folder))
        own = WholeSounds(tagger, long_clips=long_clips).eval()
        generator, largest = torch.Generator().manual_seed(0), 0.0
        for ratio in LENGTHS:
            x_T = 0.1 * torch.randn(round(ratio * tagger.clip_seconds * tagger.clip_rate), generator=generator)
            inputs = extractor(x_T.numpy(), sampling_rate=tagger.clip_rate, return_tensors="pt")
            with torch.no_grad():
                theirs_BC, ours_BC = model(**inputs).logits, own(x_T[None])
            difference = (theirs_BC - ours_BC).abs().max().item()
            if not difference <= MOST_DIFFERENCE * max(1.0, ours_BC.abs().max().item()):  # also true for NaN
                raise ValueError(
                    f"--to hub: the logits of the folder's code differ from this tagger's by {difference:.2g}; the "
                    "folder is not written"
                )
            largest = max(largest, difference)
    return largest


@contextmanager
def _imported(path: Path) -> Iterator[ModuleType]:
    """The module in a file, known to the interpreter while the context lasts; transformers looks classes up there."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[path.stem]
