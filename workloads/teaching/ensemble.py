"""The rows of a store: what its teachers say of clips in their views, together or apart. Does not depend on storage.

The rows of a shard depend on its clips and the recipe only: batches are cut from its clips in order, and the number of
threads is fixed. So it does not matter which process computes it.

Axes: N clips of a shard, V views, B clips of a batch, A teachers, T samples, C tags or features.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.teach import Teach, TeachRecipe
from workloads.data.augment import VIEW_VERSION, View, clean_view, roll_and_amplify, sound_of_view
from workloads.data.clip_store import ClipStore, Entry, damaged_clip
from workloads.data.loading import CropReader, Crops, ShardRequest
from workloads.data.read_ahead import read_ahead
from workloads.data.samples import FULL_SCALE
from workloads.data.shard import Shard, ViewKey
from workloads.data.stored_mixtures import mix_with_partners
from workloads.models.probabilities import merge_windows, probabilities
from workloads.runtime.cpu import use_cpu
from workloads.runtime.precision import set_tf32
from workloads.stores.description import About
from workloads.teaching.teachers import TeacherModel, TeacherOutputs

AHEAD = 2  # batches that are read while the teachers hear another one

Partners = Mapping[tuple[str, int], Entry]  # by clip_id and view; a clip that is not mixed is its own


class Ensemble:
    """The teachers of a recipe on a device; they hear clips at `rate`, the highest of theirs and `data.rate`.

    Sets torch's number of threads and its precision for the whole process. ValueError where `data.rate` is lower than
    a teacher's, and so would have no effect.
    """

    def __init__(self, recipe: TeachRecipe, teachers: Sequence[TeacherModel], device: str) -> None:
        use_cpu(recipe.teach.threads)
        set_tf32(False)
        self.recipe, self.teachers, self._device = recipe, teachers, torch.device(device)
        self.rate = max(recipe.data.rate, *(teacher.rate for teacher in teachers))
        if 0 < recipe.data.rate < self.rate:
            name = next(teacher.name for teacher in teachers if teacher.rate == self.rate)
            raise ValueError(
                f"data.rate = {recipe.data.rate}: teachers.{name} hears {self.rate} Hz, and a lower rate has no "
                "effect; leave it out, or set a higher one"
            )
        self.tags = teachers[0].tags if recipe.teach.logits else ()
        self._length = round(recipe.data.clip_seconds * self.rate)
        for teacher in teachers:
            teacher.set_input(rate=self.rate, clip_seconds=recipe.data.clip_seconds, device=self._device)
        self.waited_s = self.heard_s = 0.0  # in total: for clips to be read, and while the teachers heard them
        self._orders = [torch.tensor([teacher.tags.index(tag) for tag in self.tags]) for teacher in teachers]

    def describe(self) -> About:
        """What a store of these teachers says of itself; they hear a silent clip to know the width of each column.

        Raises ValueError where a teacher does not take clips as the recipe has them.
        """
        key = ViewKey("silence", 0, 0)
        shard = self._shard((key,), torch.zeros(1, self._length), [self._length], [clean_view()], size=1)
        # not checked for NaN: a teacher may divide by the level of a clip
        heard = self._hear(shard)
        widths = {name: values.shape[1] for name, values in self._combine(heard).items()}
        about: Any = {
            "teachers": [teacher.about for teacher in self.teachers],
            "tags": list(self.tags),
            **({"labels": self.teachers[0].labels} if self.tags else {}),
            "views": {
                "version": VIEW_VERSION,
                "augment": asdict(self.recipe.augment),
                "clip_seconds": self.recipe.data.clip_seconds,
                "rate": self.rate,
                "count": self.recipe.teach.views,
            },
            "columns": {name: self._column(name, width, heard) for name, width in widths.items()},
        }
        return about

    def _column(self, name: str, width: int, heard: Mapping[str, TeacherOutputs]) -> dict[str, Any]:
        """The column of this name: `outputs`, `embedding`, `frames` or `temporal`, or one of these and a teacher."""
        teach, (what, _, own) = self.recipe.teach, name.partition(".")
        teachers = [own] if own else [teacher.name for teacher in self.teachers]
        k = {"outputs": teach.k, "frames": teach.frames_k}.get(what, 0)
        in_time: dict[str, Any] = {}
        if what in ("frames", "temporal") and (grid := heard[teachers[0]].grid):
            middle = grid.first + grid.step / 2
            in_time = {"frames": {"count": grid.count, "hop_seconds": grid.step, "first_seconds": middle}}
        return {
            "holds": {"embedding": "embedding", "frames": "logits", "temporal": "profile"}.get(what, teach.holds),
            "teachers": teachers,
            **({"mean_of": teach.mean_of or "logits"} if len(teachers) > 1 else {}),
            **({"layout": "topk", "k": k} if k else {"layout": "dense"}),
            "width": width,
            **in_time,
            "dtype": teach.frames_dtype if what == "frames" else "float16",
        }

    def rows(
        self, clips: Sequence[Entry], store: ClipStore, partners: Partners | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """For each column the values of these clips in all views, values_NVC, of frames NVCP, from their sounds.

        With `partners`, by clip_id and view, of their mixtures with these.
        Raises ValueError, naming teacher, clip and view, for an output that is not finite, and for a clip of a pack
        that was damaged since.
        """
        teach, found = self.recipe.teach, dict[str, NDArray[np.float32]]()
        for start, request, crops in self._read(clips, store, partners):
            began, view = time.perf_counter(), request.keys[0].view
            for row, reason in crops.read.broken.items():
                raise damaged_clip(request.keys[row].clip_id, reason)
            size = min(teach.batch_size, len(clips) - start)
            shard = self._shard(request.keys, crops.x_BT, crops.read.samples, crops.read.views, size=size)
            heard = self._hear(shard)
            for name, outputs in heard.items():
                _require_finite(name, outputs, shard, teach)
            for name, values in self._combine(heard).items():
                if name not in found:
                    found[name] = np.empty((len(clips), teach.views, *values.shape[1:]), np.float32)
                found[name][start : start + size, view] = values.numpy()
            self.heard_s += time.perf_counter() - began
        return found

    def _read(
        self, clips: Sequence[Entry], store: ClipStore, partners: Partners | None
    ) -> Iterator[tuple[int, ShardRequest, Crops]]:
        """Batches of these clips in each view, with their partners behind them: the place of the first clip, the
        request, and its crops, which are read ahead."""
        size, views = self.recipe.teach.batch_size, range(self.recipe.teach.views)
        places = [(start, view) for start in range(0, len(clips), size) for view in views]
        requests = [_request(clips[start : start + size], view, partners) for start, view in places]
        reader = CropReader(store, self.recipe.augment, shard_size=size, length=self._length)
        all_crops = read_ahead(reader, requests, ahead=AHEAD, threads=self.recipe.teach.threads)
        for (start, _), request in zip(places, requests, strict=True):
            began = time.perf_counter()
            crops = next(all_crops)
            self.waited_s += time.perf_counter() - began
            yield start, request, crops

    def _shard(
        self, keys: tuple[ViewKey, ...], crops_BT: Tensor, samples: Sequence[int], views: Sequence[View], *, size: int
    ) -> Shard:
        """Crops, as integers, of clips of so many samples, as they are heard in these views: `size` clips, and the
        partners with which they are mixed, if there are more."""
        sound = [sound_of_view(own, view, length=self._length) for own, view in zip(samples, views, strict=True)]
        padded, mixed = min(samples) < self._length, len(keys) > size
        nothing = torch.empty(size, 0)
        x_BT = roll_and_amplify(crops_BT.to(self._device), views, scale=1 / FULL_SCALE)
        return Shard(
            keys=keys[:size],
            x_BT=mix_with_partners(x_BT, views) if mixed else x_BT,
            y_BC=nothing,
            known_BC=nothing,
            unmixed_y_BC=nothing,
            masks_B4=torch.tensor([view.masks for view in views[:size]]),
            sound_B2=torch.tensor(sound[:size]) if padded else None,
            partner_sound_B2=torch.tensor(sound[size:]) if padded and mixed else None,
        ).to(self._device)

    def _hear(self, shard: Shard) -> dict[str, TeacherOutputs]:
        return {teacher.name: teacher.hear(shard) for teacher in self.teachers}

    def _combine(self, heard: Mapping[str, TeacherOutputs]) -> dict[str, Tensor]:
        """The columns of the store, values_BC by name, from what each teacher says."""
        teach = self.recipe.teach
        found = self._outputs(heard) if teach.logits else {}
        for name, outputs in heard.items() if teach.embedding else ():
            assert outputs.embedding_BD is not None, "the recipe names the embeddings of ONNX files"
            found["embedding" if len(heard) == 1 else f"embedding.{name}"] = outputs.embedding_BD
        for (name, outputs), order in zip(heard.items(), self._orders, strict=True) if teach.frames else ():
            if outputs.frames_BPC is None:
                raise ValueError(f"teach.frames = True: teachers.{name} has no logits in time; set it to false")
            found["frames" if len(heard) == 1 else f"frames.{name}"] = outputs.frames_BPC[..., order].transpose(1, 2)
        for name, outputs in heard.items() if teach.temporal else ():
            assert outputs.profile_BP is not None, "the recipe refuses profiles of ONNX files"
            found["temporal" if len(heard) == 1 else f"temporal.{name}"] = outputs.profile_BP.unsqueeze(1)
        return found

    def _outputs(self, heard: Mapping[str, TeacherOutputs]) -> dict[str, Tensor]:
        """The columns of logits or probabilities, values_BC by name."""
        teach, labels = self.recipe.teach, self.teachers[0].labels
        logits = [outputs.logits_BC for outputs in heard.values() if outputs.logits_BC is not None]
        assert labels is not None, "teachers have labels where logits are stored"
        logits_ABC = torch.stack([logits_BC[:, order] for logits_BC, order in zip(logits, self._orders, strict=True)])
        if teach.apart:
            return {
                f"outputs.{name}": logits_BC if teach.holds == "logits" else probabilities(logits_BC, labels)
                for name, logits_BC in zip(heard, logits_ABC, strict=True)
            }
        mean_of = teach.mean_of or "logits"
        return {"outputs": mean_of_teachers(logits_ABC, labels, mean_of=mean_of, holds=teach.holds)}


def _request(clips: Sequence[Entry], view: int, partners: Partners | None) -> ShardRequest:
    """These clips in a view, and behind them the clips with which they are mixed."""
    heard = tuple(clips)
    if partners is not None:
        heard += tuple(partners[clip.clip_id, view] for clip in clips)
    return ShardRequest(tuple(ViewKey(clip.clip_id, view, 0) for clip in heard), heard)


def mean_of_teachers(logits_ABC: Tensor, labels: str, *, mean_of: str, holds: str) -> Tensor:
    """Values_BC of an ensemble: the mean of its teachers' logits, or of their probabilities, as one or the other.

    Logits of a mean of probabilities are as in `merge_windows`.
    """
    if mean_of == "logits":
        mean_BC = logits_ABC.mean(dim=0)
        return mean_BC if holds == "logits" else probabilities(mean_BC, labels)
    if holds == "logits":
        return torch.stack([merge_windows(logits_AC, labels) for logits_AC in logits_ABC.unbind(1)])
    return torch.stack([probabilities(logits_BC, labels) for logits_BC in logits_ABC]).mean(dim=0)


def require_different_views(recipe: TeachRecipe, seconds: Sequence[float]) -> None:
    """ValueError where all views of a clip are equal: nothing is augmented, and no clip of these lengths is cut."""
    differ = recipe.augment.has_clean_view or recipe.augment.mixup
    if recipe.teach.views > 1 and not differ and max(seconds, default=0) <= recipe.data.clip_seconds:
        raise ValueError(
            f"teach.views = {recipe.teach.views}: nothing is augmented and no clip is longer than data.clip_seconds, "
            "so all views of a clip are equal; set teach.views to 1, or [augment]"
        )


def _require_finite(name: str, outputs: TeacherOutputs, shard: Shard, teach: Teach) -> None:
    checked = {
        "logits": outputs.logits_BC if teach.logits else None,
        "embedding": outputs.embedding_BD if teach.embedding else None,
        "logits in time": outputs.frames_BPC if teach.frames else None,
        "profile": outputs.profile_BP,
    }
    for what, values in checked.items():
        bad = [] if values is None else torch.nonzero(~values.isfinite().flatten(1).all(dim=1)).flatten().tolist()
        if bad:
            key = shard.keys[bad[0]]
            raise ValueError(
                f"teachers.{name}: its {what} of clip {key.clip_id!r} in view {key.view} are not finite; check the "
                "teacher's weights and hear the clip; nothing of this shard is stored"
            )
