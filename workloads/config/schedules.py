"""The settings of the role schedules. `workloads/distill/schedule.py` turns them into phases. Imports nothing heavy."""

from dataclasses import dataclass, replace
from typing import Literal

from workloads.config.checked import Checked

MAX_STEPS = 99_999_999  # names of checkpoints have eight digits for the step
MAX_PHASES = 100_000  # a run's plan is a list of them, and each ends with a checkpoint


@dataclass(frozen=True, kw_only=True)
class OneWay(Checked):
    """The teachers train on labels, then are frozen and teach all other models (CMKD's default)."""

    kind: Literal["one_way"]
    teachers: tuple[str, ...]
    teacher_steps: int  # 0 when the teachers come with weights (`init`)
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_distinct("teachers", "model")
        self._require_non_negative("teacher_steps")
        self._require_positive("steps")
        longer = "steps" if self.steps >= self.teacher_steps else "teacher_steps"
        _require_bounded(self, steps=self.teacher_steps + self.steps, cause=longer)


@dataclass(frozen=True, kw_only=True)
class Generations(Checked):
    """The models train one after another; each is taught by earlier ones, frozen (Born-Again; CMKD's iterated form)."""

    kind: Literal["generations"]
    order: tuple[str, ...]
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_positive("steps")
        self._require(len(self.order) >= 2, "order", "needs two models or more")
        self._require_distinct("order", "model")
        _require_bounded(self, steps=self.steps * len(self.order), cause="steps")


@dataclass(frozen=True, kw_only=True)
class Alternate(Checked):
    """After a burn-in on labels the models take turns: one trains for `period` steps, the others teach it."""

    kind: Literal["alternate"]
    burn_in: int
    period: int
    turns: int
    order: tuple[str, ...] = ()  # the order in which the models train; empty: that of the recipe's `models`
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_non_negative("burn_in")
        self._require_positive("period", "turns")
        cause = max(("burn_in", "period", "turns"), key=lambda name: getattr(self, name))
        _require_bounded(self, steps=self.burn_in + self.period * self.turns, cause=cause)
        self._require(self.turns <= MAX_PHASES, "turns", _too_many_phases("period"))


@dataclass(frozen=True, kw_only=True)
class Mutual(Checked):
    """All models train in every step, each taught by its peers; snapshots are renewed every `exchange` steps."""

    kind: Literal["mutual"]
    burn_in: int
    steps: int
    exchange: int = 0  # 0: one phase; snapshots, if any edge has source = "snapshot", are taken at its start
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_non_negative("burn_in")
        self._require_positive("steps")
        self._require(self.exchange >= 0, "exchange", "must be 0 (never) or more steps")
        _require_bounded(self, steps=self.burn_in + self.steps, cause=_longer(self))
        few = self.steps <= MAX_PHASES * (self.exchange or self.steps)
        self._require(few, "exchange", _too_many_phases("exchange"))


@dataclass(frozen=True, kw_only=True)
class Gated(Checked):
    """Mutual learning with edge weights that follow the validation scores: the better model teaches with more weight.

    No edge's weight falls below the share `floor` of its full weight.
    """

    kind: Literal["gated"]
    burn_in: int
    steps: int
    floor: float = 0.3  # least share of its weight that an edge keeps
    margin: float = 0.05  # lead in score at which the better teacher's share is 0.73 of the way to full
    smoothing: float = 0.9  # of the moving average over validations
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_non_negative("burn_in")
        self._require_positive("steps")
        self._require_0_to_1("floor")
        self._require_positive("margin")
        self._require_below_1("smoothing")
        _require_bounded(self, steps=self.burn_in + self.steps, cause=_longer(self))


@dataclass(frozen=True, kw_only=True)
class PerSample(Checked):
    """All models train in every step; on each clip the model with the lower label loss teaches the other (Bi-KD)."""

    kind: Literal["per_sample"]
    burn_in: int
    steps: int
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require_non_negative("burn_in")
        self._require_positive("steps")
        _require_bounded(self, steps=self.burn_in + self.steps, cause=_longer(self))


def _require_bounded(schedule: Checked, *, steps: int, cause: str) -> None:
    """What all schedules share: ramps of 0 steps or more, and `steps` in all, mostly by the field `cause`."""
    schedule._require_non_negative("ramp")
    schedule._require(steps <= MAX_STEPS, cause, f"makes {steps:,} steps in all; must be at most {MAX_STEPS:,}")


def _longer(schedule: Mutual | Gated | PerSample) -> str:
    return "steps" if schedule.steps >= schedule.burn_in else "burn_in"


def _too_many_phases(field_name: str) -> str:
    return f"makes more than {MAX_PHASES:,} phases, and each ends with a checkpoint; set a longer {field_name}"


Schedule = OneWay | Generations | Alternate | Mutual | Gated | PerSample

LENGTH_FIELDS = ("burn_in", "teacher_steps", "steps", "turns", "ramp")


def shortened(schedule: Schedule, share: float) -> Schedule:
    """The same schedule over a share of its steps; the lengths of a turn and of an exchange do not change.

    Raises ValueError where that leaves no whole number.
    """
    lengths = {name: getattr(schedule, name) for name in LENGTH_FIELDS if hasattr(schedule, name)}
    shorter = {name: round(length * share) for name, length in lengths.items()}
    for name, length in lengths.items():
        if abs(shorter[name] - length * share) > 1e-6:
            raise ValueError(f"schedule.{name} = {length}: search.share = {share:g} of it is no whole number")
    return replace(schedule, **shorter)
