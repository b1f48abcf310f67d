"""A published network with names for its classes becomes a tagger of ours.

Its tags are sorted, as those of every data set of ours are (`clips.py`): only so can it teach a recipe and be scored on
one with its whole head. Projects number AudioSet's classes otherwise, so the rows of the head change places.
"""

from typing import Literal

import torch
from torch import Tensor

from workloads.models.families import build_backbone
from workloads.models.official.converted import Converted
from workloads.models.tagger import Tagger, build_tagger


def tagged(
    converted: Converted, tags: tuple[str, ...], *, name: str, labels: Literal["single", "multi"] | None = None
) -> Tagger:
    """The tagger, all of whose weights are the published ones; `tags` name its classes in their published order.

    `labels` says whether a clip has one of them or any number, where the weights are not known for it.
    """
    assert len(tags) == converted.num_classes
    model, order = converted.model, sorted(range(len(tags)), key=lambda number: tags[number])
    tagger = build_tagger(
        model,
        name=name,
        tags=tuple(tags[number] for number in order),
        labels=labels or converted.labels,
        clip_seconds=converted.clip_seconds,
        clip_rate=model.front_end.rate,
        seed=0,
    )
    tagger.load_initial(_in_order(converted.weights, tagger, torch.tensor(order)))
    assert not tagger.started_afresh, "weights that fit were not taken whole"
    return tagger


def _in_order(weights: dict[str, Tensor], tagger: Tagger, order_C: Tensor) -> dict[str, Tensor]:
    """The weights with their classes in this order.

    Which axes are over classes shows when one class more is asked for. An axis longer than the classes, as of MN's
    attention, holds all of them again and again.
    """
    model, classes = tagger.model, len(order_C)
    frames = model.front_end.frames or tagger.front_end.frames(tagger.clip_seconds)
    with torch.device("meta"):  # shapes without numbers
        wider = build_backbone(model.arch, bands=tagger.front_end.bands, frames=frames, num_classes=classes + 1)
    wider_shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    ordered = {}
    for name, tensor in weights.items():
        for axis, (length, wider_length) in enumerate(zip(tensor.shape, wider_shapes[name], strict=True)):
            if length != wider_length:
                again = tensor.unflatten(axis, (-1, classes)).index_select(axis + 1, order_C)
                tensor = again.flatten(axis, axis + 1)
        ordered[name] = tensor
    return ordered
