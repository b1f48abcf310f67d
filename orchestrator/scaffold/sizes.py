"""The sizes of a first recipe: window, front end, networks, batch and steps for these clips on this machine.

Rules of thumb, each with its reason in the recipe that is written; none depends on the sound itself.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import psutil

from orchestrator.scaffold.sounds import Header

LONGEST_WINDOW_S = 10.0  # AudioSet's; of longer clips training cuts a window anew for every view
SHORTEST_WINDOW_S = 0.1
HEARD_WHOLE = 0.95  # share of the clips that the window holds whole, as far as it may be that long
ROUNDED_DOWN = 0.01  # share of a clip that may be cut: encoders add some samples to 5 s
LITTLE_LONGER = 1.25  # so much longer a window may be to hold all
REACHED = 0.75  # share of the clips whose rate is at least that of the front end
SHORT_S = 1.5  # below it the networks keep more steps in time
MEMORY_A_SECOND = 12e6  # bytes that a second of a clip takes in a training step of these networks, measured on a CPU
MEMORY_SHARE = 0.25  # of this machine's memory for one step
EPOCHS = 60
LEAST_STEPS = 3  # of a schedule that is shortened: one of labels alone, and some that teach
FEWEST_STEPS, MOST_STEPS = 600, 6000  # of each model; fewer teach a Transformer without weights too little
VAL_SLICES = {10: 0.1, 5: 0.2, 4: 0.25, 3: 0.34, 2: 0.5}  # number of slices -> data.val_share
FAST = 4  # processor cores from which the networks may be larger


class Labelled(Protocol):
    """A clip, as far as the split depends on it."""

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def source(self) -> str: ...


@dataclass(frozen=True)
class Machine:
    """What this machine offers to a run."""

    cores: int
    memory: int  # bytes
    gpu: bool

    @classmethod
    def here(cls) -> "Machine":
        import torch

        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        return cls(cores, psutil.virtual_memory().total, torch.cuda.is_available())


@dataclass(frozen=True)
class Sizes:
    """What the recipe says of sizes."""

    clip_seconds: float
    front_end: str
    rate: int
    cnn_width: float
    cnn_strides: tuple[int, int, int, int]
    vit_dim: int
    vit_patch: int
    shard_size: int
    steps: int  # of each model
    threads: int
    device: str
    val_share: float
    roll: float

    @property
    def burn_in(self) -> int:
        """Steps in which both models learn from labels alone: a third."""
        return max(1, self.steps // 3)

    def with_steps(self, steps: int) -> "Sizes":
        return replace(self, steps=max(LEAST_STEPS, steps))


def choose_sizes(headers: tuple[Header, ...], machine: Machine, *, clips: int, val_share: float) -> Sizes:
    """The sizes for `clips` clips, of which `headers` are some or all, on this machine.

    `clips` counts all parts; `val_share` is passed on.
    """
    seconds = window([header.seconds for header in headers])
    kind, rate = front_end([header.rate for header in headers])
    short, fast = seconds < SHORT_S, machine.gpu or machine.cores >= FAST
    training = round(0.7 * clips)
    shard_size = _shard_size(seconds, training, machine)
    return Sizes(
        clip_seconds=seconds,
        front_end=kind,
        rate=rate,
        cnn_width=0.6 if fast else 0.4,
        cnn_strides=(2, 2, 2, 1) if short else (2, 2, 2, 2),
        vit_dim=192 if fast else 128,
        vit_patch=8 if short else 16,
        shard_size=shard_size,
        steps=min(MOST_STEPS, max(FEWEST_STEPS, _round_to_ten(EPOCHS * training / shard_size))),
        threads=min(machine.cores, 8),
        device="cuda" if machine.gpu else "cpu",
        val_share=val_share,
        roll=0.1 if seconds < 2 else 1.0,
    )


def window(lengths: list[float]) -> float:
    """Seconds that hold `HEARD_WHOLE` of the clips whole, or all where these are little longer; rounded up.

    Within the shortest and the longest window.
    """
    ordered = sorted(lengths)
    needed = ordered[math.ceil(HEARD_WHOLE * len(ordered)) - 1]
    needed = ordered[-1] if ordered[-1] <= LITTLE_LONGER * needed else needed
    grid = 100 if needed < 1 else 10
    rounded = math.ceil((1 - ROUNDED_DOWN) * needed * grid) / grid
    return min(max(rounded, SHORTEST_WINDOW_S), LONGEST_WINDOW_S)


def front_end(rates: list[int]) -> tuple[str, int]:
    """The front end for the rate that `REACHED` of the clips have at least: of 8 kHz or of 16 kHz.

    More costs time and seldom helps a small model; AST's and EfficientAT's weights bring front ends of their own.
    """
    reached = sorted(rates)[math.floor((1 - REACHED) * len(rates))]
    return ("logmel64_8k", 8_000) if reached < 11_025 else ("logmel64", 16_000)


def _shard_size(seconds: float, training: int, machine: Machine) -> int:
    """Clips of a step: a power of two, at most 32, and so many steps that an epoch has several."""
    fits = MEMORY_SHARE * machine.memory / (MEMORY_A_SECOND * max(seconds, 1.0))
    most = min(32 if training >= 500 else 16, fits, training / 3)
    return 2 ** max(1, math.floor(math.log2(max(most, 2))))


def val_share(training: Sequence[Labelled]) -> float:
    """The share of the clips outside of the test fold that validates: a tenth, or more where that is too little.

    Its slices must not be more than the recordings (`splits.py`), and should not be more than the clips of the rarest
    tag that has two.
    """
    counts = Counter(tag for clip in training for tag in clip.tags)
    rarest = min((count for count in counts.values() if count > 1), default=2)
    most = min(len({clip.source for clip in training}), rarest)
    return VAL_SLICES[next((slices for slices in VAL_SLICES if slices <= most), 2)]


def _round_to_ten(steps: float) -> int:
    return 10 * round(steps / 10)
