"""The settings of the role schedules; what they mean is in `roles.py`."""

from dataclasses import dataclass, replace
from typing import Literal

from workloads.config.checked import Checked


@dataclass(frozen=True, kw_only=True)
class OneWay(Checked):
    """The teachers learn from labels, then freeze and teach everybody else (CMKD's default)."""

    kind: Literal["one_way"]
    teachers: tuple[str, ...]
    teacher_steps: int  # 0 when the teachers come with weights (`init`)
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(len(set(self.teachers)) == len(self.teachers), "teachers", "must name each model once")
        self._require(self.teacher_steps >= 0, "teacher_steps", "must be 0 or more")
        self._require(self.steps > 0, "steps", "must be above 0")


@dataclass(frozen=True, kw_only=True)
class Generations(Checked):
    """One model after the other; each is taught by earlier ones, frozen (Born-Again; CMKD's iterated form)."""

    kind: Literal["generations"]
    order: tuple[str, ...]
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(self.steps > 0, "steps", "must be above 0")
        self._require(len(self.order) >= 2, "order", "needs two models or more")
        self._require(len(set(self.order)) == len(self.order), "order", "must name each model once")


@dataclass(frozen=True, kw_only=True)
class Alternate(Checked):
    """After a burn-in on labels the models take turns: one learns for `period` steps, the others teach it."""

    kind: Literal["alternate"]
    burn_in: int
    period: int
    turns: int
    order: tuple[str, ...] = ()  # who learns first, second, ...; empty: as the models are written
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(self.burn_in >= 0, "burn_in", "must be 0 or more")
        self._require(self.period > 0, "period", "must be above 0")
        self._require(self.turns > 0, "turns", "must be above 0")


@dataclass(frozen=True, kw_only=True)
class Mutual(Checked):
    """All models learn in every step, each from its peers; snapshots are retaken every `exchange` steps."""

    kind: Literal["mutual"]
    burn_in: int
    steps: int
    exchange: int = 0  # 0: one phase, snapshots (if any edge asks for them) date from its start
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(self.burn_in >= 0, "burn_in", "must be 0 or more")
        self._require(self.steps > 0, "steps", "must be above 0")
        self._require(self.exchange >= 0, "exchange", "must be 0 (never) or more steps")


@dataclass(frozen=True, kw_only=True)
class Gated(Checked):
    """Mutual learning whose weights follow the validation scores: the better teaches more, nobody below the floor."""

    kind: Literal["gated"]
    burn_in: int
    steps: int
    floor: float = 0.3  # least share of its weight that an edge keeps
    margin: float = 0.05  # lead in score at which the better teacher's share is 0.73 of the way to full
    smoothing: float = 0.9  # of the moving average over validations
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(self.burn_in >= 0, "burn_in", "must be 0 or more")
        self._require(self.steps > 0, "steps", "must be above 0")
        self._require(0 <= self.floor <= 1, "floor", "must be between 0 and 1")
        self._require(self.margin > 0, "margin", "must be above 0")
        self._require(0 <= self.smoothing < 1, "smoothing", "must be 0 up to 1")


@dataclass(frozen=True, kw_only=True)
class PerSample(Checked):
    """All models learn in every step; on each clip the model with the lower label loss teaches the other (Bi-KD)."""

    kind: Literal["per_sample"]
    burn_in: int
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require(self.burn_in >= 0, "burn_in", "must be 0 or more")
        self._require(self.steps > 0, "steps", "must be above 0")


Schedule = OneWay | Generations | Alternate | Mutual | Gated | PerSample

LENGTHS = ("burn_in", "teacher_steps", "steps", "turns", "ramp")


def shortened(schedule: Schedule, share: float) -> Schedule:
    """The same schedule over a share of its steps; how long a turn or an exchange is stays.

    Raises ValueError where that leaves no whole number.
    """
    lengths = {name: getattr(schedule, name) for name in LENGTHS if hasattr(schedule, name)}
    shorter = {name: round(length * share) for name, length in lengths.items()}
    for name, length in lengths.items():
        if abs(shorter[name] - length * share) > 1e-6:
            raise ValueError(f"schedule.{name} = {length}: search.share = {share:g} of it is no whole number")
    return replace(schedule, **shorter)
