"""What a published tagger says of sounds: its tags, and when they sound. Loads torch when it is used.

`antiphon tag` asks it of files, `antiphon serve` of uploads: both hear, and make events, through a `LoadedTagger`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from orchestrator.storage import published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime.opener import unreadable
from workloads.runtime.scratch import scratch_folder

if TYPE_CHECKING:
    from workloads.data.decode import Sound
    from workloads.evaluate.detect import Detection
    from workloads.evaluate.sounds import HeardSound
    from workloads.models.tagger import Tagger


@dataclass(frozen=True)
class LoadedTagger:
    """A published tagger, ready to hear; batch norm is folded."""

    uri: str
    tagger: "Tagger"
    state: dict[str, Any]  # of its checkpoint

    @property
    def long_clips(self) -> str:
        return str(self.state["long_clips"])

    def load(self, file: BinaryIO, *, max_seconds: float = math.inf) -> "Sound":
        """The sound of an open file at the tagger's rate; raises as `load_sound`."""
        from workloads.data.decode import load_sound

        return load_sound(file, rate=self.tagger.clip_rate, max_seconds=max_seconds)

    def tags(self, heard: "HeardSound", *, top: int) -> list[tuple[str, float]]:
        """The `top` most likely tags of a sound with their probabilities, best first."""
        from workloads.evaluate.sounds import likeliest

        return likeliest(self.tagger, heard.logits_C, top=top)

    def events(self, heard: "HeardSound", *, threshold: float, by_boxes: bool = False) -> list["Detection"]:
        """When tags sound in a sound that was heard with frames; ValueError as in `detect`."""
        from workloads.evaluate.detect import detect

        assert heard.frames_FC is not None, "events are made of frames"
        seconds = len(heard.sound.x_T) / self.tagger.clip_rate
        return detect(heard.frames_FC, self.tagger.tags, seconds=seconds, threshold=threshold, by_boxes=by_boxes)


def load_for_tagging(uri: str) -> LoadedTagger:
    """The published tagger at a folder or URI; ValueError where there is none, or it is damaged."""
    from workloads.evaluate.predict import load_tagger
    from workloads.export.fold import fold_batch_norm

    with scratch_folder() as scratch:
        tagger, state = load_tagger(published_folders.fetch(uri, scratch), uri)
    return LoadedTagger(uri, fold_batch_norm(tagger), state)


def why_no_events(state: dict[str, Any]) -> str:
    """Why the tagger of this checkpoint's state does not say when tags sound; empty where it does."""
    from workloads.config.architectures import gives_frames
    from workloads.config.recipe import Model, restore

    arch = restore(Model, state["model"]).arch
    if gives_frames(arch) and state["labels"] == "multi":
        return ""
    return (
        f"({arch.family}, labels {state['labels']}) does not say when tags sound; use one with logits in time "
        "(docs/models.md), trained with data.labels = 'multi'"
    )


def check_threshold(threshold: float, name: str = "--threshold") -> None:
    """ValueError for a threshold of events that is no probability between 0 and 1."""
    if not 0 < threshold < 1:
        raise ValueError(f"{name} {threshold:g}: must be between 0 and 1")


@dataclass(frozen=True)
class TaggedFiles:
    """What `tag` found, by file: tags with probabilities, when they sound if asked, what was mended in a sound, and why
    others have no tags."""

    tags: dict[str, list[tuple[str, float]]]
    events: dict[str, list["Detection"]]
    notes: dict[str, tuple[str, ...]]
    broken: dict[str, str]


def tag_files(
    uri: str, files: list[str], *, top: int, events_above: float | None = None, by_boxes: bool = False
) -> TaggedFiles:
    """The `top` most likely tags of each file. A file that cannot be read or heard does not end the others.

    With `events_above` also when each tag is at least that probable, with `by_boxes` in change-point boxes. Raises
    ValueError for `top` below 1, a probability that is none, where events are asked of a tagger without logits in time,
    and where a package is not installed.
    """
    from workloads.evaluate.boxes import require_package
    from workloads.evaluate.predict import BadNumbers
    from workloads.evaluate.sounds import hear_sound

    if top < 1:
        raise ValueError(f"--top {top}: must be 1 or more")
    if events_above is not None:
        check_threshold(events_above)
    if by_boxes:
        require_package()
    loaded = load_for_tagging(uri)
    if events_above is not None and (reason := why_no_events(loaded.state)):
        raise ValueError(f"--events: the tagger {uri!r} {reason}")
    opener, found = FsspecFiles(), TaggedFiles({}, {}, {}, {})
    for name in files:
        try:
            with opener.open(name) as file:
                sound = loaded.load(file)
        except Exception as error:  # whatever goes wrong while one file is opened is that file's fault
            found.broken[name] = unreadable(error)
            continue
        try:
            heard = hear_sound(loaded.tagger, sound.x_T, loaded.long_clips, frames=events_above is not None)
        except BadNumbers as error:
            found.broken[name] = str(error)
            continue
        found.tags[name] = loaded.tags(heard, top=top)
        if events_above is not None:
            found.events[name] = loaded.events(heard, threshold=events_above, by_boxes=by_boxes)
        if sound.notes:
            found.notes[name] = sound.notes
    return found
