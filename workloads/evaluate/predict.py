"""Logits and scores of a trained tagger over a set of clips, and its loading.

Does not depend on training.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from workloads.config.recipe import Model, restore
from workloads.data.batches import evaluation_batches
from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.data.shard import Shard
from workloads.evaluate import metrics
from workloads.evaluate.frames import clips_with_frames, join_windows, on_frames, score_frames
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import build_front_end
from workloads.models.probabilities import merge_windows
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime import checkpoint
from workloads.runtime.json_files import TaggerState, require_shape
from workloads.runtime.opener import LocalFiles
from workloads.runtime.placement import WorkerGroup

Value = TypeVar("Value")
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
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """logits_NC and y_NC of clips, in their order; of clips longer than a window as `data.long_clips` says.

    And from the same forwards logits_FC in fp16 of each of `clips_with_frames(tagger, clips)`.

    With `workers` it is a collective call of theirs: they share the batches, and all of them get the whole. The tagger
    keeps its training or eval mode. `autocast` opens the context of a forward, that of training where its precision is
    wanted. Raises BadNumbers where a logit is not finite.
    """
    in_time = clips_with_frames(tagger, clips)
    was_training = tagger.training
    own: dict[int, tuple[Tensor, list[Tensor]]] = {}  # this worker's logits and frames by batch
    size = prepared.recipe.train.shard_size
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    workers = workers or WorkerGroup()
    decoded = prepared.cache.decoded() if in_time else {}
    samples = {clip.clip_id: decoded[clip.clip_id].samples for clip in in_time}
    tagger.eval()
    for number in range(workers.rank, len(batches), workers.size):
        own[number] = _predict(tagger, batches[number], prepared, autocast, samples)
    tagger.train(was_training)
    by_batch = {number: found for worker in workers.gather(own) for number, found in worker.items()}
    logits_NC = torch.cat([by_batch[number][0] for number in sorted(by_batch)])
    _require_finite(clips, logits_NC)
    frames = [logits_FC for number in sorted(by_batch) for logits_FC in by_batch[number][1]]
    return logits_NC, torch.from_numpy(prepared.dataset.targets(clips)), frames


def _predict(
    tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData, autocast: Autocast, samples: Mapping[str, int]
) -> tuple[Tensor, list[Tensor]]:
    """logits_NC of a few clips, and frames of those whose length in `samples` is given; the tagger is in eval mode."""
    device = next(tagger.parameters()).device
    windows: list[list[Tensor]] = [[] for _ in clips]
    in_time: list[list[Tensor]] = [[] for _ in clips]
    dataset, data = prepared.dataset, prepared.recipe.data
    batches = evaluation_batches(clips, dataset, prepared.cache, data, at_once=prepared.recipe.train.shard_size)
    for rows, shard in batches:
        with torch.no_grad(), autocast():
            shard = shard.to(device)
            logits_BC, frames_BWC = _logits_and_frames(tagger, shard, with_frames=bool(samples))
        for number, row in enumerate(rows):
            windows[row].append(logits_BC[number])
            in_time[row] += [] if frames_BWC is None else [frames_BWC[number]]
    logits_NC = torch.stack([merge_windows(torch.stack(own), dataset.labels) for own in windows])
    about: dict[str, Any] = {"rate": prepared.cache.rate, "seconds": data.clip_seconds, "long_clips": data.long_clips}
    frames = [
        join_windows(own, samples[clip.clip_id], **about)
        for clip, own in zip(clips, in_time, strict=True)
        if clip.clip_id in samples
    ]
    return logits_NC, frames


def _logits_and_frames(tagger: Tagger, shard: Shard, *, with_frames: bool) -> tuple[Tensor, Tensor | None]:
    """logits_BC of windows, and if asked for frames_BWC, on the CPU; a compiled network is used where it gives all."""
    sound_BT = shard.sound(tagger.front_end)
    if not with_frames:
        return tagger.tag(shard.x_BT, sound_BT).float().cpu(), None
    outputs = tagger.outputs(tagger.front_end(shard.x_BT, sound_BT))
    assert outputs.frames_BPC is not None, "only taggers with frames are asked"
    return outputs.logits_BC.float().cpu(), on_frames(tagger, outputs.frames_BPC).cpu()


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
    """A tagger's scores on clips (`metrics.score`), and in time where it has frames and the clips have events
    (`evaluate/frames.py`); a collective call."""
    logits_NC, y_NC, frames = predict_clips(tagger, clips, prepared, workers, autocast=autocast)
    scores = metrics.score(logits_NC, y_NC, prepared.dataset.labels)
    return scores | score_frames(frames, clips_with_frames(tagger, clips), prepared.dataset)


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
