"""A published tagger that hears one sound piece by piece: a long file, a pipe or a microphone. Loads torch when used.

A session runs in one thread, and for a live sound with one more, which reads.
"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from orchestrator.storage import published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime.opener import PIPE_OR_DEVICE, unreadable
from workloads.runtime.scratch import scratch_folder

if TYPE_CHECKING:
    from workloads.data.sound_stream import SoundStream
    from workloads.evaluate.event_tracker import EventRules, StreamEvent
    from workloads.evaluate.stream import Steps

PIPE, MICROPHONE = "-", "mic"
READ_AHEAD = 600  # blocks of a live sound: a minute
ENDED, STOPPED, BROKEN = "the sound ended", "stopped", "it could not go on"


@dataclass(frozen=True)
class StreamRequest:
    """What to hear, and how: `antiphon tag --stream` has an option for each. None: the default."""

    source: str
    threshold: float
    off: float | None = None
    min_duration: float | None = None
    merge_gap: float | None = None
    hop: float | None = None
    carry: bool | None = None
    pcm: str | None = None
    rate: int | None = None
    channels: int | None = None

    @property
    def is_microphone(self) -> bool:
        return self.source == MICROPHONE or self.source.startswith(f"{MICROPHONE}:")

    @property
    def is_live(self) -> bool:
        return self.source == PIPE or self.is_microphone

    @property
    def name(self) -> str:
        return "standard input" if self.source == PIPE else self.source


@dataclass(frozen=True)
class Heard:
    """What one block of sound has brought: seconds heard by now, what has closed and opened, all that is open."""

    seconds: float
    events: list["StreamEvent"]
    open_events: list["StreamEvent"]


@dataclass
class _Timing:
    """Of the pieces that the network has heard; constant memory."""

    pieces: int = 0
    total_s: float = 0.0
    largest_s: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    cpu_began: float = field(default_factory=time.process_time)

    def add(self, pieces: int, seconds: float) -> None:
        if pieces:
            self.pieces, self.total_s = self.pieces + pieces, self.total_s + seconds
            self.largest_s = max(self.largest_s, seconds / pieces)


class StreamSession:
    """One sound through one tagger: made, it has loaded the tagger; `opened` it has a sound, which `hear` hears.

    Raises ValueError, before a network is built, for options that contradict each other, and for a tagger or a sound
    that cannot be used.
    """

    def __init__(self, uri: str, request: StreamRequest) -> None:
        import torch

        from workloads.evaluate.event_tracker import EventTracker
        from workloads.evaluate.predict import load_tagger
        from workloads.evaluate.stream import CarriedStream, open_stream, why_not_carried
        from workloads.export.fold import fold_batch_norm

        _check_source(request)
        self.rules = _rules(request)
        with scratch_folder() as scratch:
            tagger, _ = load_tagger(published_folders.fetch(uri, scratch), uri)
        if request.carry and (reason := why_not_carried(tagger)):
            raise ValueError(
                f"--carry: the tagger {uri!r} cannot: {reason}; without --carry it hears windows of "
                f"{tagger.clip_seconds:g} s"
            )
        self._request, self._rate = request, tagger.clip_rate
        self._stream = open_stream(fold_batch_norm(tagger), hop=request.hop, carry=request.carry)
        self._tracker = EventTracker(tagger.tags, self.rules)
        self.carried, self.ended_by, self.error = isinstance(self._stream, CarriedStream), "", ""
        if self.carried:
            torch.set_num_threads(1)  # pieces are too short to share
        self.facts: dict[str, Any] = {
            "source": request.name,
            "model": tagger.model.arch.family,
            "tags": len(tagger.tags),
            "state": "carried" if self.carried else "windows",
            "hop_s": self._stream.hop,
            "latency_s": round(self._stream.latency, 3),
            "first_after_s": tagger.clip_seconds if self._stream.begins_with_clip else 0.0,
        }

    @contextmanager
    def opened(self, stopped: Callable[[], bool]) -> Iterator[Self]:
        """The session with its sound, which the end of the context closes. Waits for a pipe's header, or `stopped()`,
        which ends the sound later too.
        """
        from workloads.data.decode import BrokenClip
        from workloads.data.resampler import Resampler

        with ExitStack() as stack:
            try:
                self._sound = _open(self._request, self._rate, stack, stopped=stopped)
            except (BrokenClip, OSError) as error:
                raise ValueError(f"--stream {self._request.name}: {_why_not_opened(self._request, error)}") from None
            if self._sound is not None:
                self._resampler = Resampler(orig=self._sound.rate, new=self._rate)
            self._timing, self._stopped = _Timing(), stopped
            yield self

    def hear(self) -> Iterator[Heard]:
        """Hear the sound to its end, or until it is stopped; the last value closes what is open.

        Where the sound turns out to be unusable, what came before is heard, and `error` says why.
        """
        from workloads.data.decode import BrokenClip
        from workloads.data.live_sound import read_live

        if self._sound is None:  # stopped before its header came
            self.ended_by = STOPPED
            return
        blocks = iter(self._sound)
        if self._request.is_live:
            blocks = read_live(self._sound, stopped=self._stopped, most=READ_AHEAD)
        try:
            for x_T in blocks:
                yield self._heard(self._stream.push(self._resampler.push(x_T, last=False)))
                if self.error or self._stopped():
                    break
        except (BrokenClip, OSError) as error:
            self._fail(unreadable(error))
        self.ended_by = self.ended_by or (STOPPED if self._stopped() else ENDED)
        yield self._finish()

    def report(self) -> dict[str, Any]:
        """What was heard and what it took; values for JSON."""
        timing, seconds = self._timing, self._stream.seconds
        cpu_s = time.process_time() - timing.cpu_began
        return {
            "seconds": round(seconds, 3),
            "events": self._tracker.opened,
            "ended_by": self.ended_by,
            **self.facts,
            "pieces": timing.pieces,
            "piece_ms": round(1000 * timing.total_s / timing.pieces, 2) if timing.pieces else None,
            "largest_piece_ms": round(1000 * timing.largest_s, 2) if timing.pieces else None,
            "cpu_s_per_s": round(cpu_s / seconds, 5) if seconds else None,
            "wall_s": round(time.perf_counter() - timing.began, 2),
            "notes": list(self._sound.notes) if self._sound is not None else [],
            "error": self.error or None,
        }

    def _heard(self, found: Iterator["Steps"]) -> Heard:
        """What the pieces of one block bring; of a block that fails at one of them, what the pieces before it bring."""
        from workloads.evaluate.predict import BadNumbers

        events: list[StreamEvent] = []
        before, began = self._stream.pieces, time.perf_counter()
        try:
            for steps in found:
                events += self._tracker.update(steps)
        except (ValueError, BadNumbers) as error:
            self._fail(str(error))
        self._timing.add(self._stream.pieces - before, time.perf_counter() - began)
        return Heard(self._stream.seconds, events, self._tracker.open_events)

    def _fail(self, reason: str) -> None:
        """Note why the sound cannot go on, unless it was stopped, or has failed before."""
        if self.ended_by in ("", ENDED):
            self.ended_by, self.error = BROKEN, reason

    def _finish(self) -> Heard:
        """Hear what waits, and close what is open; too short a sound, unless stopped, is an error."""
        import torch

        rest_T = self._resampler.push(torch.zeros(0), last=True)
        events = self._heard(self._stream.push(rest_T)).events
        events += self._heard(self._stream.finish() for _ in range(1)).events
        return Heard(self._stream.seconds, events + self._tracker.finish(), [])


def _rules(request: StreamRequest) -> "EventRules":
    from workloads.evaluate.event_tracker import OFF_SHARE, EventRules

    off = request.threshold * OFF_SHARE if request.off is None else request.off
    durations = {"min_duration": request.min_duration, "merge_gap": request.merge_gap}
    given = {name: value for name, value in durations.items() if value is not None}
    return EventRules(request.threshold, off, **given)


def _check_source(request: StreamRequest) -> None:
    """Raise ValueError where the options of the sound do not go together."""
    from workloads.data.decode import MAX_RATE, MIN_RATE
    from workloads.data.sound_stream import MAX_CHANNELS, PCM

    if request.pcm is not None:
        if request.is_microphone:
            raise ValueError(f"--pcm {request.pcm}: is for raw samples in a file or a pipe; leave it out")
        if request.pcm not in PCM:
            raise ValueError(f"--pcm {request.pcm!r}: no such form of samples; known are {', '.join(PCM)}")
        if request.rate is None:
            raise ValueError("--pcm: raw samples do not say their rate; give --rate, and --channels if more than 1")
    elif request.rate is not None and not request.is_microphone:
        raise ValueError(f"--rate {request.rate}: a header says the rate; it is for raw samples (--pcm) and mic")
    if request.channels is not None and request.pcm is None:
        raise ValueError(f"--channels {request.channels}: is for raw samples (--pcm); leave it out")
    if request.rate is not None and not MIN_RATE <= request.rate <= MAX_RATE:
        raise ValueError(f"--rate {request.rate}: must be {MIN_RATE} to {MAX_RATE} Hz")
    if request.channels is not None and not 1 <= request.channels <= MAX_CHANNELS:
        raise ValueError(f"--channels {request.channels}: must be 1 to {MAX_CHANNELS}")


def _why_not_opened(request: StreamRequest, error: Exception) -> str:
    reason = unreadable(error)
    if reason == PIPE_OR_DEVICE:
        return f"{reason}; hear it as standard input: --stream - < {shlex.quote(request.source)}"
    return reason


def _open(request: StreamRequest, rate: int, stack: ExitStack, *, stopped: Callable[[], bool]) -> "SoundStream | None":
    """The sound of a request; `rate` is that of the tagger. Waits for a pipe's header; None: stopped before it came."""
    from workloads.data import sound_stream
    from workloads.data.live_sound import wait_for
    from workloads.data.microphone import open_microphone

    if request.is_microphone:
        return open_microphone(request.rate or rate, request.source[len(MICROPHONE) + 1 :])
    # Waits in a thread: neither libsndfile, which reads the header, nor the opening of a named pipe ends at a signal.
    if request.pcm is None and request.source == PIPE:
        return wait_for(lambda: sound_stream.open_pipe(0), stopped=stopped)
    if request.source == PIPE:
        file = stack.enter_context(sound_stream.unbuffered(0))
    elif (found := wait_for(lambda: FsspecFiles().open(request.source), stopped=stopped)) is not None:
        file = stack.enter_context(found)
    else:
        return None
    if request.pcm is None:
        return sound_stream.open_file(file)
    assert request.rate is not None, "_check_source asks for it"
    return sound_stream.open_pcm(file, sound_stream.Pcm(request.pcm, request.rate, request.channels or 1))
