"""Ten short words synthesised from formants: keywords that need no recording and no program.

A source of harmonics, and of noise for consonants, is shaped by three resonances that move from sound to sound. The
words can be told apart, by models at least; they are not speech of a person. Does not depend on clips.

Axes: S sounds of a word, T samples, K frequency bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz
HIGHEST = 7_000.0  # Hz, of harmonics
SMOOTHING_S = 0.015  # over which a sound goes over into the next one
BANDWIDTHS = (80.0, 100.0, 150.0)  # Hz of the three resonances
NOISE_OCTAVES = 0.5  # width of the noise of consonants, to either side

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Sound:
    """One sound of a word: its length, its three resonances in Hz, how loud its voice and its noise are."""

    seconds: float
    formants: tuple[float, float, float]
    voice: float = 0.0
    noise: float = 0.0
    noise_hz: float = 1000.0


# Resonances of vowels after Peterson and Barney (JASA 24, 1952), rounded; those of consonants are only typical.
SOUNDS = {
    "ee": Sound(0.10, (280, 2250, 2900), voice=0.9),
    "e": Sound(0.13, (530, 1840, 2480), voice=1.0),
    "a": Sound(0.14, (710, 1230, 2550), voice=1.0),
    "o": Sound(0.14, (570, 840, 2410), voice=1.0),
    "oo": Sound(0.09, (320, 870, 2240), voice=0.8),
    "y": Sound(0.06, (270, 2300, 3000), voice=0.6),
    "l": Sound(0.08, (360, 1100, 2600), voice=0.6),
    "r": Sound(0.08, (330, 1100, 1500), voice=0.6),
    "n": Sound(0.10, (280, 1600, 2600), voice=0.4),
    "s": Sound(0.13, (400, 1700, 2600), noise=0.5, noise_hz=5500),
    "f": Sound(0.12, (400, 1100, 2300), noise=0.2, noise_hz=3500),
    "-": Sound(0.05, (400, 1400, 2500)),  # the closure before a stop
    "p": Sound(0.02, (400, 900, 2300), noise=0.5, noise_hz=900),
    "t": Sound(0.02, (400, 1700, 2600), noise=0.6, noise_hz=4000),
    "d": Sound(0.03, (300, 1700, 2600), voice=0.3, noise=0.4, noise_hz=3000),
    "g": Sound(0.03, (300, 1500, 2300), voice=0.3, noise=0.4, noise_hz=1700),
}
FORMANT_WORDS = {
    "yes": "y e s",
    "no": "n o oo",
    "up": "a - p",
    "down": "d a oo n",
    "left": "l e f - t",
    "right": "r a ee - t",
    "on": "o n",
    "off": "o f",
    "stop": "s - t o - p",
    "go": "g o oo",
}


@dataclass(frozen=True)
class Voice:
    """How a word is said: pitch in Hz, resonances relative to the table's, times its durations."""

    pitch: float
    tract: float
    tempo: float


def draw_voice(generator: np.random.Generator) -> Voice:
    """A voice, low to high; higher ones have a shorter vocal tract, as people have."""
    height, own = generator.random(2)
    pitch, tract = 85.0 * 3**height, 0.9 + 0.25 * height + 0.05 * own
    return Voice(pitch, tract, generator.uniform(1.2, 1.8))


def seconds_of(word: str, voice: Voice) -> float:
    """How long the voice takes for the word, in seconds."""
    return voice.tempo * sum(sound.seconds for sound in _sounds(word))


def say(word: str, voice: Voice, generator: np.random.Generator) -> Wave:
    """The word at 16 kHz, x_T with a peak of 1, `seconds_of` long; the generator draws the noise of consonants."""
    sounds = _sounds(word)
    ends_S = np.cumsum([voice.tempo * sound.seconds for sound in sounds])
    time_T = np.arange(round(ends_S[-1] * RATE)) / RATE
    number_T = np.searchsorted(ends_S, time_T, side="right").clip(max=len(sounds) - 1)
    x_T = _smooth(np.array([sound.voice for sound in sounds])[number_T]) * _voiced(sounds, ends_S, voice, time_T)
    for number, sound in enumerate(sounds):
        if sound.noise:
            envelope_T = _smooth(np.where(number_T == number, sound.noise, 0.0))
            x_T += envelope_T * _band_of_noise(len(time_T), sound.noise_hz, generator)
    faded_T = x_T * np.minimum(1, np.minimum(time_T, time_T[::-1]) / (SMOOTHING_S / 3))
    return faded_T / np.abs(faded_T).max()


def _sounds(word: str) -> list[Sound]:
    return [SOUNDS[name] for name in FORMANT_WORDS[word].split()]


def _voiced(sounds: list[Sound], ends_S: Wave, voice: Voice, time_T: Wave) -> Wave:
    """Harmonics of a falling pitch through the moving resonances, with a root mean square of 1 / 4."""
    middles_S = ends_S - np.diff(ends_S, prepend=0) / 2
    pitch_T = voice.pitch * np.linspace(1.1, 0.85, len(time_T))
    phase_T = 2 * np.pi * np.cumsum(pitch_T) / RATE
    formants = [np.interp(time_T, middles_S, voice.tract * np.array(track)) for track in _tracks(sounds)]
    x_T = np.zeros(len(time_T))
    for harmonic in range(1, int(HIGHEST / pitch_T.max()) + 1):
        gain_T = np.full(len(time_T), 1.0 / harmonic)  # of the glottis: falls with frequency
        for formant_T, width in zip(formants, BANDWIDTHS, strict=True):
            ratio_T = harmonic * pitch_T / formant_T
            gain_T /= np.sqrt((1 - ratio_T**2) ** 2 + (ratio_T * width / formant_T) ** 2)
        x_T += gain_T * np.sin(harmonic * phase_T)
    return x_T / (4 * np.sqrt(np.mean(x_T**2)))


def _tracks(sounds: list[Sound]) -> list[tuple[float, ...]]:
    """The three resonances, each over the sounds of a word."""
    return list(zip(*(sound.formants for sound in sounds), strict=True))


def _band_of_noise(length: int, centre: float, generator: np.random.Generator) -> Wave:
    """Noise around a frequency, with a root mean square of 1 / 4."""
    spectrum_K = np.fft.rfft(generator.standard_normal(length))
    octaves_K = np.log2(np.fft.rfftfreq(length, 1 / RATE).clip(1) / centre)
    band_T: Wave = np.fft.irfft(spectrum_K * np.exp(-((octaves_K / NOISE_OCTAVES) ** 2)), length)
    return band_T / (4 * np.sqrt(np.mean(band_T**2)))


def _smooth(steps_T: Wave) -> Wave:
    window = np.hanning(round(SMOOTHING_S * RATE) + 2)
    return np.convolve(steps_T, window / window.sum(), mode="same")
