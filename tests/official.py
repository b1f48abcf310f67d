"""Reproducible weights and a reproducible waveform, to compare an official network with ours.

No code or weights of the official projects are here: `tests/data/official/*.json` holds names and shapes of a state
dict, the commit of the project it came from, and the logits its own code gave for `keyed_state` and `waveform`.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def keyed_state(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict whose tensors depend on their names and shapes only; of the usual scale of trained weights."""
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def waveform(seconds: float, rate: int) -> Tensor:
    """x_BT of two clips: gliding tones, clicks and noise, between -1 and 1."""
    time = np.arange(round(seconds * rate)) / rate
    clips = []
    for number, generator in enumerate((_generator("first clip"), _generator("second clip"))):
        glide = np.sin(2 * np.pi * (200 + 300 * number + 150 * time) * time)
        clicks = (np.mod(time, 0.5 + 0.25 * number) < 0.01) * 0.5
        # drawn per millisecond, so that the noise is the same at any rate
        noise = np.repeat(generator.standard_normal(math.ceil(seconds * 1000)), rate // 1000)[: len(time)]
        clips.append(0.4 * glide + clicks + 0.05 * noise)
    return torch.from_numpy(np.stack(clips)).float().clamp(-1, 1)


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    values = _generator(name).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = 0.5 + np.abs(values)
    elif len(shape) == 1 and name.endswith("weight"):  # of a norm
        values = 1 + 0.1 * values
    elif len(shape) <= 1:
        values = 0.1 * values
    else:
        values = values / math.sqrt(max(1, math.prod(shape[1:])))
    return torch.from_numpy(np.asarray(values))


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])))
