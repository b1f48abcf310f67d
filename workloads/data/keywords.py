"""Clips of one keyword in noise, at a known place: computed from a clip's id, a seed and, for recordings, their files.

As the authors of TKD made theirs (reference/tkd.md section 6): a keyword somewhere in 2, 4, 6 or 8 seconds of noise.
What they do not say of it (noise, signal-to-noise ratio, law of the position) is our choice. Everything that a clip's
sound depends on is in its path (`NoisyKeyword`), so every worker computes the same bits.

Axes: T samples of the clip, L samples of the keyword.
"""

import json
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from workloads.config.data import KEYWORD_SECONDS
from workloads.data.formant_words import draw_voice, say, seconds_of
from workloads.data.noise import coloured_noise, cut_anywhere, root_mean_square
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1  # of what is computed; part of every path, so that stored clips of another version are not used
PREFIX = "keywords:"
RATE = 16_000  # Hz of the computed sound, which has no energy above 8 kHz
NOISE_DB = (-40.0, -25.0)  # root mean square of the noise, re full scale, from which a clip's is drawn
FORMANT, FOLDER, COLOURED = "formant", "folder", "coloured"

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class NoisyKeyword:
    """What the sound of a clip is computed from; `to_path` is the clip's path."""

    clip_id: str
    version: int
    seed: int
    seconds: float
    low_db: float  # the range of the signal-to-noise ratio
    high_db: float
    source: str  # "formant", "folder", or the version of espeak-ng
    voice: str  # of espeak-ng; else empty
    keyword: str  # the word, or the path of its recording
    noise: str  # "coloured", or the path of a recording

    def to_path(self) -> str:
        return PREFIX + json.dumps(astuple(self))

    @classmethod
    def from_path(cls, path: str) -> Self:
        return cls(*json.loads(path.removeprefix(PREFIX)))

    @property
    def files(self) -> list[str]:
        """The recordings, relative to the data set's root."""
        recorded = {self.keyword: self.source == FOLDER, self.noise: self.noise != COLOURED}
        return [path for path, is_file in recorded.items() if is_file]


def place(made_of: NoisyKeyword) -> tuple[float, float]:
    """Onset and offset of a clip's keyword, in seconds: anywhere in the clip, evenly.

    Of a formant word exactly; a recorded or spoken one is somewhere in its second.
    """
    seconds = KEYWORD_SECONDS
    if made_of.source == FORMANT:
        seconds = seconds_of(made_of.keyword, draw_voice(_generator(made_of, "voice")))
    onset = _generator(made_of, "place").random() * (made_of.seconds - seconds)
    return onset, onset + seconds


def render_keyword(path: str, rate: int, *, opener: Opener, root: str) -> "Tensor":
    """The waveform of a clip at `rate` Hz: x_T float32, its keyword in noise at the drawn signal-to-noise ratio.

    That is the ratio of their mean powers from the keyword's onset to its offset. Raises BrokenClip where a recording
    cannot be used, OSError where one cannot be read.
    """
    import torch

    from workloads.data.decode import cut_or_pad, resample

    made_of = NoisyKeyword.from_path(path)
    onset, offset = place(made_of)
    keyword_L = _keyword(made_of, round((offset - onset) * RATE), opener, root)
    noise_T = _noise(made_of, round(made_of.seconds * RATE), opener, root)
    snr_db = _generator(made_of, "snr").uniform(made_of.low_db, made_of.high_db)
    x_T = torch.from_numpy(_mixed(keyword_L, noise_T, round(onset * RATE), snr_db).astype(np.float32))
    return cut_or_pad(resample(x_T, orig=RATE, new=rate), round(made_of.seconds * rate))


def _generator(made_of: NoisyKeyword, purpose: str) -> np.random.Generator:
    return keyed_generator("keywords", made_of.version, made_of.seed, made_of.clip_id, purpose)


def _keyword(made_of: NoisyKeyword, length: int, opener: Opener, root: str) -> Wave:
    if made_of.source == FORMANT:
        voice = draw_voice(_generator(made_of, "voice"))
        return _fitted(say(made_of.keyword, voice, _generator(made_of, "consonants")), length)
    if made_of.source == FOLDER:
        return _fitted(_recording(made_of.keyword, opener, root), length)
    from workloads.data.espeak import speak

    said_T = speak(made_of.keyword, made_of.voice, _generator(made_of, "pitch and speed"), rate=RATE)
    return _fitted(said_T.double().numpy(), length)


def _fitted(x_L: Wave, length: int) -> Wave:
    """So many samples: of a longer sound the loudest ones, a shorter one in the middle of silence."""
    if len(x_L) <= length:
        before = (length - len(x_L)) // 2
        return np.pad(x_L, (before, length - len(x_L) - before))
    energy = np.concatenate([[0.0], np.cumsum(x_L**2)])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return x_L[start : start + length]


def _noise(made_of: NoisyKeyword, length: int, opener: Opener, root: str) -> Wave:
    """The noise of a clip, at the level that is drawn for it."""
    generator = _generator(made_of, "noise")
    if made_of.noise == COLOURED:
        noise_T = coloured_noise(length, generator, rate=RATE)
    else:
        noise_T = cut_anywhere(_recording(made_of.noise, opener, root), length, generator)
    level_db = generator.uniform(*NOISE_DB)
    return (
        _sounding(noise_T, f"the {made_of.seconds:g} s that are taken of {made_of.noise}")
        / root_mean_square(noise_T)
        * 10 ** (level_db / 20)
    )


def _recording(path: str, opener: Opener, root: str) -> Wave:
    from workloads.data.decode import load_sound

    with opener.open(opener.join(root, path)) as file:
        return _sounding(load_sound(file, rate=RATE).x_T.double().numpy(), path)


def _sounding(x_T: Wave, name: str) -> Wave:
    from workloads.data.decode import BrokenClip

    if not x_T.any():
        raise BrokenClip(f"{name}: nothing but silence")
    return x_T


def _mixed(keyword_L: Wave, noise_T: Wave, start: int, snr_db: float) -> Wave:
    """The keyword from sample `start` on in the noise; as a whole scaled down to full scale where it goes beyond."""
    start = min(start, len(noise_T) - len(keyword_L))
    part = slice(start, start + len(keyword_L))
    heard_L = _sounding(noise_T[part], "the noise beside the keyword")
    x_T = noise_T.copy()
    x_T[part] += keyword_L * root_mean_square(heard_L) / root_mean_square(keyword_L) * 10 ** (snr_db / 20)
    return x_T / max(1.0, np.abs(x_T).max())
