"""Noise in which keywords are put: computed, or cut from a longer recording. Does not depend on clips or files.

Axes: T samples, K frequency bins.
"""

import numpy as np
from numpy.typing import NDArray

SLOPES = (0.0, 2.0)  # the power falls with the frequency to this power: white to brown
SWELLS = 3  # slow changes of level that are added
SWELL_HZ, SWELL_DB = (0.1, 1.0), 3.0  # how often each comes, and how much it changes the level

Wave = NDArray[np.float64]


def coloured_noise(length: int, generator: np.random.Generator, *, rate: int) -> Wave:
    """Noise between white and brown whose level goes slowly up and down, x_T."""
    spectrum_K, frequency_K = np.fft.rfft(generator.standard_normal(length)), np.fft.rfftfreq(length, 1 / rate)
    slope = generator.uniform(*SLOPES)
    spectrum_K[1:] *= (frequency_K[1:] / frequency_K[1]) ** (-slope / 2)
    spectrum_K[frequency_K < 20] = 0  # what nobody hears would take nearly all of brown noise's power
    time_T, level_T = np.arange(length) / rate, np.zeros(length)
    for _ in range(SWELLS):
        hertz, phase = generator.uniform(*SWELL_HZ), generator.uniform(0, 2 * np.pi)
        level_T += SWELL_DB * np.sin(2 * np.pi * hertz * time_T + phase)
    noise_T: Wave = np.fft.irfft(spectrum_K, length) * 10 ** (level_T / 20)
    return noise_T


def cut_anywhere(x_T: Wave, length: int, generator: np.random.Generator) -> Wave:
    """So many samples from a drawn place of a recording, which is repeated where it is shorter."""
    if len(x_T) < length:
        x_T = np.tile(x_T, -(-length // len(x_T)))
    start = int(generator.integers(len(x_T) - length + 1))
    return x_T[start : start + length]


def root_mean_square(x_T: Wave) -> float:
    return float(np.sqrt(np.mean(x_T**2)))
