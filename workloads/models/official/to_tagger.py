"""Makes a tagger of a converted network and names for its classes.

The tags are sorted, as those of every data set here are (`data/clips.py`): only then can the tagger teach a recipe and
be scored on its data with the whole head. Projects order AudioSet's classes differently, so the head's rows are
reordered.
"""

from typing import Literal

import torch
from torch import Tensor

from workloads.models.families import empty_backbone
from workloads.models.official.converted import Converted
from workloads.models.tagger import Tagger, build_tagger


def to_tagger(
    converted: Converted, tags: tuple[str, ...], *, name: str, labels: Literal["single", "multi"] | None = None
) -> Tagger:
    """The tagger, with published weights only; `tags` name its classes in their published order.

    `labels` overrides the labels that the weights are known to be trained with: one tag per clip, or any number.
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
    tagger.load_initial(_reorder_classes(converted.weights, tagger, torch.tensor(order)))
    assert not tagger.newly_initialised, "weights that fit were not all loaded"
    return tagger


def _reorder_classes(weights: dict[str, Tensor], tagger: Tagger, order_C: Tensor) -> dict[str, Tensor]:
    """The weights with their classes in this order.

    Axes over classes are those that become longer in a network with one more class. An axis longer than the number of
    classes, as of MN's attention, repeats all classes.
    """
    num_classes = len(order_C)
    wider = empty_backbone(
        tagger.model.arch, bands=tagger.front_end.bands, frames=tagger.num_frames, num_classes=num_classes + 1
    )
    wider_shapes = {name: tensor.shape for name, tensor in wider.state_dict().items()}
    reordered = {}
    for name, tensor in weights.items():
        for axis, (length, wider_length) in enumerate(zip(tensor.shape, wider_shapes[name], strict=True)):
            if length != wider_length:
                by_class = tensor.unflatten(axis, (-1, num_classes)).index_select(axis + 1, order_C)
                tensor = by_class.flatten(axis, axis + 1)
        reordered[name] = tensor
    return reordered
