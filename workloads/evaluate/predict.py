"""Logits and scores of a trained tagger over a set of clips, and the most likely tags of one sound.

Does not depend on training.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from workloads.config.recipe import Model, restore
from workloads.data.batches import evaluation_batches, window_starts
from workloads.data.clips import Clip
from workloads.data.decode import cut_or_pad
from workloads.data.prepare import PreparedData
from workloads.evaluate import metrics
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import build_front_end
from workloads.models.probabilities import merge_windows, probabilities
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime import checkpoint
from workloads.runtime.json_files import TaggerState, require_shape
from workloads.runtime.opener import LocalFiles
from workloads.runtime.placement import WorkerGroup

Value = TypeVar("Value")
WINDOWS_AT_ONCE = 16  # of a long recording
Autocast = Callable[[], AbstractContextManager[Any]]


class BadNumbers(RuntimeError):
    """A loss, a gradient or logits that are not finite, with which a run cannot continue."""


def raised_on_all(everyone: WorkerGroup, call: Callable[[], Value]) -> Value:
    """The result of a call; BadNumbers that it raises on some workers are raised on all. A collective call.

    Workers that hold other models would else wait for ever for those that have ended.
    """
    bad = ""
    try:
        value = call()
    except BadNumbers as error:
        bad = str(error)
    if found := next(filter(None, everyone.gather(bad)), ""):
        raise BadNumbers(found)
    return value


def predict_clips(
    tagger: Tagger,
    clips: Sequence[Clip],
    prepared: PreparedData,
    workers: WorkerGroup | None = None,
    *,
    autocast: Autocast = nullcontext,
) -> tuple[Tensor, Tensor]:
    """logits_NC and y_NC of clips, in their order; of clips longer than a window as `data.long_clips` says.

    With `workers` it is a collective call of theirs: they share the batches, and all of them get the whole. The tagger
    keeps its training or eval mode. `autocast` opens the context of a forward, that of training where its precision is
    wanted. Raises BadNumbers where a logit is not finite.
    """
    was_training = tagger.training
    own: dict[int, Tensor] = {}  # this worker's logits by batch
    size = prepared.recipe.train.shard_size
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    workers = workers or WorkerGroup()
    tagger.eval()
    for number in range(workers.rank, len(batches), workers.size):
        own[number] = _predict(tagger, batches[number], prepared, autocast)
    tagger.train(was_training)
    by_batch = {number: logits for worker in workers.gather(own) for number, logits in worker.items()}
    logits_NC = torch.cat([by_batch[number] for number in sorted(by_batch)])
    _require_finite(clips, logits_NC)
    return logits_NC, torch.from_numpy(prepared.dataset.targets(clips))


def _predict(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData, autocast: Autocast) -> Tensor:
    """logits_NC of a few clips; the tagger is in eval mode."""
    device = next(tagger.parameters()).device
    windows: list[list[Tensor]] = [[] for _ in clips]
    dataset, recipe = prepared.dataset, prepared.recipe
    batches = evaluation_batches(clips, dataset, prepared.cache, recipe.data, at_once=recipe.train.shard_size)
    for rows, shard in batches:
        with torch.no_grad(), autocast():
            shard = shard.to(device)
            logits_BC = tagger.tag(shard.x_BT, shard.sound(tagger.front_end)).float().cpu()
        for row, logits_C in zip(rows, logits_BC, strict=True):
            windows[row].append(logits_C)
    return torch.stack([merge_windows(torch.stack(own), dataset.labels) for own in windows])


def _require_finite(clips: Sequence[Clip], logits_NC: Tensor) -> None:
    bad = [clip.clip_id for clip, finite in zip(clips, logits_NC.isfinite().all(1), strict=True) if not finite]
    if bad:
        raise BadNumbers(
            f"the model's logits of {len(bad)} of {len(clips)} clips are not finite ({bad[0]} is the first): its "
            "weights have diverged, or these clips are broken; lower the learning rate, or check the clips"
        )


def score_clips(
    tagger: Tagger,
    clips: Sequence[Clip],
    prepared: PreparedData,
    workers: WorkerGroup,
    *,
    autocast: Autocast = nullcontext,
) -> dict[str, float]:
    """A tagger's scores on clips (`metrics.score`), from `predict_clips`; a collective call."""
    logits_NC, y_NC = predict_clips(tagger, clips, prepared, workers, autocast=autocast)
    return metrics.score(logits_NC, y_NC, prepared.dataset.labels)


def load_tagger(folder: Path, uri: str = "") -> tuple[Tagger, dict[str, Any]]:
    """A published tagger in eval mode, and the state of its checkpoint (model, tags, scores, recipe, data).

    `folder` holds it, or is `RUN/models/NAME`, with a folder for each attempt; of a copy, errors name the `uri`.

    Raises ValueError if the folder is unfinished, damaged, or holds no tagger. The weights are compared with an empty
    network's before a network is built: it cannot be larger than they are.
    """
    folder = Path(LocalFiles().published_folder(str(folder)))
    uri = uri or str(folder)
    state = checkpoint.read_state(folder, uri)
    if state.get("kind") != "tagger":
        raise ValueError(f"checkpoint {uri}: holds a training state, not a tagger; taggers are under models/NAME")
    require_shape(state, f"checkpoint {uri}: state.json", TaggerState)
    weights = checkpoint.read_tensors(folder, "weights", uri)
    try:
        tagger = _build_for(weights, state)
    except ValueError as error:
        raise ValueError(f"checkpoint {uri}: {error}") from None
    tagger.load_own(weights, f"checkpoint {uri}: weights.safetensors")
    return tagger.eval(), state


def _build_for(weights: dict[str, Tensor], state: dict[str, Any]) -> Tagger:
    """The tagger of this state, once it is known that the weights fit it."""
    model, tags = restore(Model, state["model"]), tuple(state["tags"])
    front_end = build_front_end(model.front_end.kind, clip_rate=state["clip_rate"])
    empty = empty_backbone(
        model.arch,
        bands=front_end.bands,
        frames=front_end.input_frames(model.front_end, state["clip_seconds"]),
        num_classes=len(tags),
    )
    require_fit({name.removeprefix("backbone."): tensor for name, tensor in weights.items()}, empty)
    clips: dict[str, Any] = {"clip_seconds": state["clip_seconds"], "clip_rate": state["clip_rate"]}
    return build_tagger(model, name=state["name"], tags=tags, labels=state["labels"], seed=0, **clips)


def tag_sound(tagger: Tagger, state: dict[str, Any], x_T: Tensor, *, top: int) -> list[tuple[str, float]]:
    """The most likely tags of the sound of one file, at the tagger's rate, with their probabilities, best first.

    A sound shorter than a window is padded, of a longer one is heard what the tagger's `long_clips` says, as in
    training and scoring. `state` is the tagger's, from `load_tagger`. Raises BadNumbers where a logit is not finite.
    """
    length = round(state["clip_seconds"] * state["clip_rate"])
    starts = window_starts(len(x_T), length, state["long_clips"])
    sound_BT = (torch.arange(length) < len(x_T)).unsqueeze(0) if len(x_T) < length else None
    logits: list[Tensor] = []
    for first in range(0, len(starts), WINDOWS_AT_ONCE):
        windows_BT = torch.stack(
            [cut_or_pad(x_T, length, offset=start) for start in starts[first : first + WINDOWS_AT_ONCE]]
        )
        with torch.no_grad():
            logits.append(tagger.tag(windows_BT, sound_BT))
    logits_C = merge_windows(torch.cat(logits), state["labels"])
    if not bool(logits_C.isfinite().all()):
        raise BadNumbers("the model's logits of it are not finite: its weights are damaged or have diverged")
    mean_C = probabilities(logits_C.unsqueeze(0), state["labels"])[0]
    best = mean_C.topk(min(top, len(mean_C)))
    return [
        (state["tags"][index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
