"""The embedded data set: soundscapes of ten tags, computed from a seed, so that nothing needs to be downloaded.

The tags form five pairs with equal average spectra that differ in time only (a chirp up or down): a model of the mean
spectrum cannot distinguish the two tags of a pair, a model of the change over time can.
Does not depend on files or caches.

Axes: T samples, K frequency bins.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.events import Event
from workloads.runtime.rng import keyed_generator

if TYPE_CHECKING:
    from torch import Tensor


VERSION = 1  # of the sounds; part of every path, so that stored clips and logits of another version are not used
RATE = 16_000  # in Hz, of the computed sounds, which have no energy above 8 kHz
FOLDS = 5
FADE_S = 0.01  # fade at both ends of an event, in seconds

Wave = NDArray[np.float64]
Synthesizer = Callable[[int, np.random.Generator], Wave]


def synthetic_clips(data: Data) -> list[Clip]:
    """The clips of the set, each with its own source, folds 1 to 5 in turn. Labels "single": one event per clip."""
    clips = []
    for number in range(data.synthetic_clips):
        clip_id = f"synthetic-{number:06d}"
        own = tuple(events(clip_id, data))
        tags = tuple(sorted(event.tag for event in own))
        path = f"synthetic:{VERSION}/{data.synthetic_seed}/{data.labels}/{data.clip_seconds}/{number}"
        clips.append(Clip(clip_id, path, tags, fold=1 + number % FOLDS, source=clip_id, events=own))
    return clips


def events(clip_id: str, data: Data) -> list[Event]:
    """A clip's events by onset: one to three different tags (one with labels "single"); events may overlap."""
    number, generator = _clip_number(clip_id), _clip_generator(clip_id, data, "events")
    names = list(SYNTHESIZERS)
    first = number // FOLDS % len(names)  # in turn, so that every fold has every tag equally often
    others = [index for index in generator.permutation(len(names)) if index != first]
    count = 1 if data.labels == "single" else int(generator.integers(1, 4))
    chosen = []
    for index in [first, *others[: count - 1]]:
        length, start = generator.uniform(1.0, 1.8), generator.random()
        length = min(length, 0.9 * data.clip_seconds)
        onset = start * (data.clip_seconds - length)
        chosen.append(Event(names[index], onset, onset + length))
    return sorted(chosen, key=lambda event: event.onset)


def render(clip_id: str, data: Data, rate: int) -> "Tensor":
    """The waveform of a clip at `rate` Hz: x_T float32, `clip_seconds` long, its events over background noise."""
    import torch

    from workloads.data.decode import cut_or_pad, resample

    x_T = _background(_clip_generator(clip_id, data, "background"), round(data.clip_seconds * RATE))
    for event in events(clip_id, data):
        generator = _clip_generator(clip_id, data, event.tag)
        start, stop = round(event.onset * RATE), min(round(event.offset * RATE), len(x_T))
        sound_T = SYNTHESIZERS[event.tag](stop - start, generator) * _fade(stop - start)
        level = 0.3 * 10 ** (-generator.uniform(0, 12) / 20)
        x_T[start:stop] += level * sound_T / np.abs(sound_T).max()
    y_T = torch.from_numpy(x_T.clip(-1, 1).astype(np.float32))
    return cut_or_pad(resample(y_T, orig=RATE, new=rate), round(data.clip_seconds * rate))


def _clip_number(clip_id: str) -> int:
    return int(clip_id.removeprefix("synthetic-"))


def _clip_generator(clip_id: str, data: Data, purpose: str) -> np.random.Generator:
    return keyed_generator("synthetic", VERSION, data.synthetic_seed, _clip_number(clip_id), purpose)


def _background(generator: np.random.Generator, length: int) -> Wave:
    """Noise at -60 to -40 dB, white to low-pass."""
    white_T = generator.standard_normal(length + 1)
    smoothing = generator.uniform(0, 0.9)
    return 10 ** (generator.uniform(-60, -40) / 20) * (white_T[1:] + smoothing * white_T[:-1])


def _fade(length: int) -> Wave:
    """The envelope that fades an event in and out, so that it starts and ends without a click."""
    ramp = np.minimum(1, np.arange(length) / (FADE_S * RATE))
    return ramp * ramp[::-1]


def _tone(frequency_T: Wave) -> Wave:
    """A sine of varying frequency in Hz, with its second harmonic."""
    phase_T = 2 * np.pi * np.cumsum(frequency_T) / RATE
    return np.sin(phase_T) + 0.3 * np.sin(2 * phase_T)


def _chirp(length: int, generator: np.random.Generator) -> Wave:
    """A tone that rises by two octaves."""
    low = generator.uniform(400, 900)
    return _tone(low * 4 ** np.linspace(0, 1, length))


def _scale(length: int, generator: np.random.Generator) -> Wave:
    """A tone that rises by an octave in four steps of 0.08 to 0.12 seconds, repeated."""
    low, step = generator.uniform(400, 1400), generator.uniform(0.08, 0.12) * RATE
    return _tone(low * 2 ** (np.arange(length) // step % 4 / 3))


def _clicks(length: int, generator: np.random.Generator) -> Wave:
    """Damped clicks at decreasing intervals, eight in 0.45 to 0.6 seconds, repeated."""
    pitch, run = generator.uniform(1000, 3000), generator.uniform(0.45, 0.6) * RATE
    gaps = np.geomspace(6, 1, 8)
    starts = np.concatenate([[0], np.cumsum(gaps)[:-1]]) / gaps.sum() * run
    time_T = np.arange(round(0.03 * RATE)) / RATE
    click_T = np.exp(-time_T / 0.005) * np.sin(2 * np.pi * pitch * time_T)
    impulses_T = np.zeros(length)
    onsets = (starts + run * np.arange(np.ceil(length / run))[:, None]).astype(int).ravel()
    impulses_T[onsets[onsets < length]] = 1
    return np.convolve(impulses_T, click_T)[:length]


def _tremolo(length: int, generator: np.random.Generator, *, low: float, high: float) -> Wave:
    """A sustained chord with an amplitude modulation of `low` to `high` Hz."""
    pitch, rate, phase = generator.uniform(400, 1200), generator.uniform(low, high), generator.uniform(0, 2 * np.pi)
    modulation_T = 1 + 0.9 * np.sin(2 * np.pi * rate * np.arange(length) / RATE + phase)
    return sum(_tone(np.full(length, pitch * ratio)) for ratio in (1.0, 1.26, 1.5)) * modulation_T


def _swell(length: int, generator: np.random.Generator) -> Wave:
    """A band of noise whose level rises by 40 dB."""
    spectrum_K = np.fft.rfft(generator.standard_normal(length))
    frequency_K = np.fft.rfftfreq(length, 1 / RATE)
    centre = generator.uniform(800, 2500)
    band_T = np.fft.irfft(spectrum_K * np.exp(-((np.log2(frequency_K.clip(1) / centre) / 0.4) ** 2)), length)
    return band_T * 10 ** np.linspace(-2, 0, length)


def _reversed(synthesizer: Synthesizer) -> Synthesizer:
    return lambda length, generator: synthesizer(length, generator)[::-1]


SYNTHESIZERS: dict[str, Synthesizer] = {
    "chirp_up": _chirp,
    "chirp_down": _reversed(_chirp),
    "scale_up": _scale,
    "scale_down": _reversed(_scale),
    "clicks_speeding_up": _clicks,
    "clicks_slowing_down": _reversed(_clicks),
    "tremolo_slow": lambda length, generator: _tremolo(length, generator, low=2.0, high=3.0),
    "tremolo_fast": lambda length, generator: _tremolo(length, generator, low=8.0, high=12.0),
    "swell": _swell,
    "fade": _reversed(_swell),
}
