"""Events of a sound that goes on: each opens once and closes once.

A tag becomes active at a step of probability `threshold` or more and ceases to be at one below `off` (hysteresis). What
is active again within `merge_gap` seconds is the same event. An event that lasts `min_duration` opens; a shorter one is
no event. With off = threshold and both durations 0 these are the events of `detect`.

Axes: P steps in time, C tags.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.evaluate.stream import Steps

OFF_SHARE = 0.6  # of the threshold: the usual `off`
EPSILON = 1e-9  # seconds; steps of 0.04 s do not add up exactly


@dataclass(frozen=True)
class EventRules:
    """When events open and close: probabilities, and seconds."""

    threshold: float
    off: float
    min_duration: float = 0.1
    merge_gap: float = 0.3

    def __post_init__(self) -> None:
        for name in ("threshold", "off"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name):g}: must be between 0 and 1")
        if self.off > self.threshold:
            raise ValueError(
                f"off = {self.off:g}: must be at most threshold = {self.threshold:g}, at which an event opens; "
                "exchange the two, or leave off out"
            )
        for name in ("min_duration", "merge_gap"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} = {getattr(self, name):g}: must be 0 s or more")


@dataclass(frozen=True)
class StreamEvent:
    """An event that has opened, or closed where it has an offset: its number, from 1, and its largest probability."""

    number: int
    tag: str
    onset: float
    offset: float | None
    probability: float


class EventTracker:
    """The events of one sound. Memory: a few numbers for each tag."""

    def __init__(self, tags: tuple[str, ...], rules: EventRules) -> None:
        self._tags, self._rules = tags, rules
        self._active_C = np.zeros(len(tags), bool)  # at the last step
        self._begun_C = np.zeros(len(tags), bool)  # active, or it may become so again as the same event
        self._number_C = np.zeros(len(tags), int)  # of the event that has opened; 0: none
        self._onset_C, self._offset_C, self._peak_C = (np.zeros(len(tags)) for _ in range(3))
        self.opened = 0

    @property
    def open_events(self) -> list[StreamEvent]:
        """The events that have opened and not closed, by their numbers."""
        return sorted(
            (self._event(column, closed=False) for column in np.flatnonzero(self._number_C).tolist()),
            key=lambda event: event.number,
        )

    def update(self, steps: Steps) -> list[StreamEvent]:
        """What closes and opens with these steps, in order."""
        found: list[StreamEvent] = []
        for begin, end, p_C in zip(steps.begins_P, steps.ends_P, steps.p_PC, strict=True):
            found += self._step(begin, end, p_C)
        return found

    def finish(self) -> list[StreamEvent]:
        """Close what is open: no more steps come."""
        return self._close(self._begun_C.copy())

    def _step(self, begin: float, end: float, p_C: NDArray[np.float32]) -> list[StreamEvent]:
        rules = self._rules
        least_C = np.where(self._active_C, rules.off, rules.threshold).astype(
            np.float32
        )  # 0.7 in fp32 is less than 0.7
        self._active_C = p_C >= least_C
        new_C = self._active_C & ~self._begun_C
        self._onset_C[new_C], self._peak_C[new_C], self._number_C[new_C] = begin, 0.0, 0
        self._begun_C |= new_C
        self._offset_C[self._active_C] = end
        self._peak_C = np.where(self._active_C, np.maximum(self._peak_C, p_C), self._peak_C)
        closed = self._close(self._begun_C & ~self._active_C & (end - self._offset_C > rules.merge_gap + EPSILON))
        long_C = self._offset_C - self._onset_C >= rules.min_duration - EPSILON
        return closed + self._open(self._active_C & (self._number_C == 0) & long_C)

    def _open(self, which_C: NDArray[np.bool_]) -> list[StreamEvent]:
        found = []
        for column in np.flatnonzero(which_C).tolist():
            self.opened += 1
            self._number_C[column] = self.opened
            found.append(self._event(column, closed=False))
        return found

    def _close(self, which_C: NDArray[np.bool_]) -> list[StreamEvent]:
        found = [self._event(column, closed=True) for column in np.flatnonzero(which_C & (self._number_C > 0)).tolist()]
        self._begun_C &= ~which_C
        self._active_C &= ~which_C
        self._number_C[which_C] = 0
        return found

    def _event(self, column: int, *, closed: bool) -> StreamEvent:
        return StreamEvent(
            number=int(self._number_C[column]),
            tag=self._tags[column],
            onset=round(float(self._onset_C[column]), 3),
            offset=round(float(self._offset_C[column]), 3) if closed else None,
            probability=float(self._peak_C[column]),
        )
