"""Teachers of a store: published taggers and ONNX files, each from a shard of clips to logits, an embedding, or both.

Does not depend on what is stored of them, nor on where they come from: their files are on this machine.

Axes: B clips, D features, C tags.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from workloads.config.recipe import FRONT_ENDS, FrontEnd
from workloads.config.teach import Teach, Teacher, TeachRecipe
from workloads.data.shard import Shard
from workloads.data.tag_names import tag_names
from workloads.evaluate.predict import load_tagger
from workloads.export.export import max_length, takes_any_length
from workloads.models.catalog import CATALOG
from workloads.models.front_end import LogMel, build_front_end
from workloads.models.profiles import TimeGrid, outputs_and_profile, time_grid
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime.checkpoint import file_digest, weights_digest
from workloads.runtime.opener import Opener
from workloads.runtime.text import decode_text, name_some
from workloads.teaching.onnx_file import OnnxFile


class TeacherOutputs(NamedTuple):
    """The outputs of a teacher for the clips of a shard, on the CPU."""

    logits_BC: Tensor | None  # of teachers without tags none
    embedding_BD: Tensor | None
    frames_BPC: Tensor | None = None  # of teachers that have logits in time
    grid: TimeGrid | None = None  # where the P steps of these and of the profile are
    profile_BP: Tensor | None = None  # when the teacher listens, where that is asked for


class TeacherModel(ABC):
    """A teacher in eval mode. `about` is what a store says of it, `rate` the lowest at which it should hear clips."""

    name: str
    tags: tuple[str, ...]  # of an ONNX file whose logits are not stored none
    labels: Literal["single", "multi"] | None
    rate: int
    about: dict[str, Any]
    hears_masks = True  # of log-mels

    @abstractmethod
    def set_input(self, *, rate: int, clip_seconds: float, device: torch.device) -> None:
        """Hear clips of this length at this rate from now on; ValueError where the teacher cannot."""

    @abstractmethod
    def hear(self, shard: Shard) -> TeacherOutputs:
        """What it says of each clip, without gradient and in float32."""


class TaggerTeacher(TeacherModel):
    """A tagger: published, or of the catalog with drawn weights. `temporal`: it also says when it listens."""

    def __init__(self, name: str, tagger: Tagger, *, temporal: bool = False) -> None:
        self._tagger, self._temporal, settings = tagger, temporal, tagger.model.front_end
        self.name, self.tags, self.labels, self.rate = name, tagger.tags, tagger.labels, tagger.clip_rate
        self.about = {
            **{"name": name, "weights_sha256": weights_digest(tagger.state_dict()), "front_end": settings.kind},
            **{"mean": tagger.mean, "std": tagger.std, "frames": settings.frames},
        }

    def set_input(self, *, rate: int, clip_seconds: float, device: torch.device) -> None:
        tagger = self._tagger
        if clip_seconds != tagger.clip_seconds and not _takes(tagger, clip_seconds):
            raise ValueError(
                f"data.clip_seconds = {clip_seconds:g}: teachers.{self.name} hears clips of {tagger.clip_seconds:g} s "
                f"only; --set data.clip_seconds={tagger.clip_seconds:g}"
            )
        if rate != tagger.clip_rate:
            tagger.front_end = build_front_end(tagger.front_end.kind, clip_rate=rate)
        tagger.to(device)

    @torch.no_grad()
    def hear(self, shard: Shard) -> TeacherOutputs:
        mel_BMF = shard.mel(self._tagger.front_end)
        profile_BP: Tensor | None = None
        if self._temporal:
            outputs, profile_BP = outputs_and_profile(self._tagger, mel_BMF)
        else:
            outputs = self._tagger.outputs(mel_BMF)
        frames = self._tagger.model.front_end.frames or mel_BMF.shape[2]
        return TeacherOutputs(
            outputs.logits_BC.float().cpu(),
            outputs.embedding_BD.float().cpu(),
            frames_BPC=None if outputs.frames_BPC is None else outputs.frames_BPC.float().cpu(),
            grid=time_grid(self._tagger, outputs.sequence_BPD.shape[1], frames=frames),
            profile_BP=None if profile_BP is None else profile_BP.cpu(),
        )


def _takes(tagger: Tagger, clip_seconds: float) -> bool:
    """Whether a tagger that was built for clips of another length takes these."""
    if frames := tagger.model.front_end.frames:
        return tagger.front_end.frames(clip_seconds) <= frames
    longest = max_length(tagger, front_end_inside=True)
    return takes_any_length(tagger) and (longest is None or clip_seconds * tagger.clip_rate <= longest)


class OnnxTeacher(TeacherModel):
    """An ONNX file; what the recipe does not say of it, the file does, if `antiphon export` wrote it."""

    def __init__(self, name: str, teacher: Teacher, path: Path, files: Opener, *, teach: Teach) -> None:
        place = f"teachers.{name}"
        outputs = {"output": teacher.output} if teach.logits else {}
        outputs |= {"embedding": teacher.embedding} if teach.embedding else {}
        self._file = OnnxFile(path, place=place, outputs=outputs, threads=teach.threads)
        self.name, facts = name, self._file.metadata
        of_tags = facts if teach.logits else {}
        self.tags = _read_tags(teacher.tags, files) if teacher.tags else tuple(of_tags.get("tags", ()))
        self.labels = teacher.labels or of_tags.get("labels")
        own = facts.get("input", {})
        takes = teacher.input or {"waveform": "waveform", "log-mel": "logmel"}.get(own.get("kind"))
        own_kind = own.get("front_end")
        self._settings = teacher.front_end or (FrontEnd(kind=own_kind) if own_kind in FRONT_ENDS else None)
        self._own_rate = teacher.rate or int(facts.get("rate", 0))
        self.hears_masks = takes == "logmel"
        needed: list[tuple[str, Any, str]] = []
        if teach.logits:
            needed += [("tags", self.tags, "a text file with a tag a line"), ("labels", self.labels, "single or multi")]
        needed += [("input", takes, "waveform or logmel")]
        needed += [("front_end", self._settings, f"with its kind, one of {', '.join(FRONT_ENDS)}")] * self.hears_masks
        needed += [("rate", self._own_rate, "that of the waveforms in Hz")] * (not self.hears_masks)
        for key, value, which in needed:
            if not value:
                raise ValueError(f"{place}.{key}: is missing, and the file does not say it; give {which}")
        self.about = {"name": name, "weights_sha256": file_digest(path), "front_end": "waveform"}
        if self.hears_masks and self._settings is not None:
            self._own_rate = max(self._settings.rate, int(facts.get("rate", 0)))
            self._mean, self._std = self._settings.mean or 0.0, self._settings.std or 1.0
            self.about |= {"front_end": self._settings.kind, "mean": self._mean, "std": self._std}
            self.about |= {"frames": self._settings.frames}
        else:
            self.about |= {"rate": self._own_rate}
        self.rate = self._own_rate
        self._front_end: nn.Module | None = None

    def set_input(self, *, rate: int, clip_seconds: float, device: torch.device) -> None:
        if self.hears_masks and self._settings is not None:
            self._front_end = build_front_end(self._settings.kind, clip_rate=rate).to(device)
        else:
            self._front_end = torchaudio.transforms.Resample(rate, self._own_rate).to(device)

    @torch.no_grad()
    def hear(self, shard: Shard) -> TeacherOutputs:
        """Raises ValueError where the file does not take these clips, or gives another number of logits."""
        assert self._front_end is not None, "call set_input first"
        if isinstance(self._front_end, LogMel) and self._settings is not None:
            mel_BMF = self._front_end.fit_frames(shard.mel(self._front_end), self._settings)
            clips = (mel_BMF - self._mean) / self._std
        else:
            clips = self._front_end(shard.x_BT)
        found = {
            key: torch.from_numpy(values)
            for key, values in self._file(np.ascontiguousarray(clips.cpu().numpy())).items()
        }
        logits_BC = found.get("output")
        if logits_BC is not None and logits_BC.shape[1] != len(self.tags):
            raise ValueError(
                f"teachers.{self.name}.tags: {len(self.tags)} tags, and the file gives {logits_BC.shape[1]} logits; "
                "name the tags of the file"
            )
        return TeacherOutputs(logits_BC, found.get("embedding"))


def load_teachers(recipe: TeachRecipe, paths: dict[str, Path], files: Opener) -> list[TeacherModel]:
    """The teachers of a recipe, in its order, from their folders or files on this machine.

    Raises ValueError for a teacher that cannot be loaded, where logits are stored for one whose tags or labels are not
    those of the first, and for one that takes waveforms where log-mels are masked.
    """
    found: list[TeacherModel] = []
    for name, teacher in recipe.teachers.items():
        if teacher.is_onnx:
            found.append(OnnxTeacher(name, teacher, paths[name], files, teach=recipe.teach))
        elif teacher.drawn:
            drawn = _drawn_tagger(name, teacher, recipe.data.clip_seconds)
            found.append(TaggerTeacher(name, drawn, temporal=recipe.teach.temporal))
        else:
            published, _ = load_tagger(paths[name], teacher.uri)
            found.append(TaggerTeacher(name, published, temporal=recipe.teach.temporal))
        if not found[-1].hears_masks and (recipe.augment.mask_time or recipe.augment.mask_mel):
            raise ValueError(
                f"augment.mask_time, mask_mel: mask log-mels, and teachers.{name} takes waveforms; set both to 0"
            )
        if recipe.teach.logits:
            _require_same_tags(found[0], found[-1])
    return found


def _drawn_tagger(name: str, teacher: Teacher, clip_seconds: float) -> Tagger:
    """A network of the catalog for AudioSet's tags with weights that are drawn by the teacher's name."""
    if teacher.drawn not in CATALOG:
        raise ValueError(
            f"teachers.{name}.uri = {teacher.uri!r}: no such network; `antiphon models` prints them, such as "
            f"{name_some(sorted(CATALOG))}"
        )
    model, tags = CATALOG[teacher.drawn], tag_names(None, teacher.drawn)
    shape: dict[str, Any] = {"labels": "multi", "clip_seconds": clip_seconds, "clip_rate": model.front_end.rate}
    return build_tagger(model, name=name, tags=tags, seed=0, **shape).eval()


def _require_same_tags(first: TeacherModel, other: TeacherModel) -> None:
    """ValueError where two teachers do not have the same tags, in whatever order, and the same kind of labels."""
    differences = {
        first.name: sorted(set(first.tags) - set(other.tags)),
        other.name: sorted(set(other.tags) - set(first.tags)),
    }
    only = "; ".join(f"only {name} has {', '.join(map(repr, tags))}" for name, tags in differences.items() if tags)
    if only:
        raise ValueError(
            f"teachers.{other.name}: its tags are not those of teachers.{first.name}: {only}; teachers of one store "
            "have the same tags, by name"
        )
    if first.labels != other.labels:
        raise ValueError(
            f"teachers.{other.name}: its labels are {other.labels!r}, those of teachers.{first.name} {first.labels!r}; "
            "fill a store with each"
        )


def _read_tags(uri: str, files: Opener) -> tuple[str, ...]:
    with files.open(uri) as file:
        lines = decode_text(file.read(), uri).splitlines()
    tags = tuple(line.strip() for line in lines if line.strip())
    if len(set(tags)) < len(tags):
        twice = next(tag for tag in tags if tags.count(tag) > 1)
        raise ValueError(f"{uri}: tag {twice!r} is there twice; each line is the tag of one logit")
    return tags
