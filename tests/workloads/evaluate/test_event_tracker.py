"""Events that open and close once, against a definition in other words, and against `detect`."""

import numpy as np
import pytest
import torch

from workloads.evaluate.detect import detect
from workloads.evaluate.event_tracker import EventRules, EventTracker, StreamEvent
from workloads.evaluate.stream import Steps

STEP = 0.1


def steps_of(p_PC: np.ndarray, *, first: int = 0, step: float = STEP) -> Steps:
    begins_P = step * (first + np.arange(len(p_PC)))
    return Steps(begins_P, begins_P + step, p_PC.astype(np.float32))


def tracked(p_P: list[float], rules: EventRules) -> list[StreamEvent]:
    """All that one tag's probabilities lead to."""
    tracker = EventTracker(("dog",), rules)
    return tracker.update(steps_of(np.array(p_P)[:, None])) + tracker.finish()


def spans(events: list[StreamEvent]) -> list[tuple[float, float]]:
    return [(event.onset, event.offset) for event in events if event.offset is not None]


def rules(**changes: float) -> EventRules:
    return EventRules(**({"threshold": 0.5, "off": 0.3, "min_duration": 0.0, "merge_gap": 0.0} | changes))


def test_an_event_opens_at_the_threshold_and_goes_on_above_off():
    found = tracked([0.4, 0.5, 0.35, 0.9, 0.31, 0.29, 0.4, 0.1], rules())
    assert [(event.number, event.onset, event.offset) for event in found] == [(1, 0.1, None), (1, 0.1, 0.5)]
    assert found[0].probability == pytest.approx(0.5)
    assert found[1].probability == pytest.approx(0.9)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.6, 0.7, 0.9])
def test_a_probability_of_fp32_that_is_the_threshold_reaches_it(level):
    """0.7 in fp32 is less than 0.7, 0.6 more; `detect` compares alike."""
    found = tracked([0.0, level, 0.0], rules(threshold=level, off=level))
    assert spans(found) == [(0.1, 0.2)]
    logit_FC = torch.logit(torch.tensor([[level]]))
    own = float(logit_FC.sigmoid())
    assert len(detect(logit_FC, ("dog",), seconds=0.04, threshold=own, median_seconds=0.0)) == 1
    assert spans(tracked([1.0, level, 0.0], rules(threshold=0.95, off=level))) == [(0.0, 0.2)]


def test_a_short_pause_ends_no_event():
    p_P = [0.9, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9]
    assert spans(tracked(p_P, rules())) == [(0.0, 0.1), (0.3, 0.4), (0.7, 0.8)]
    assert spans(tracked(p_P, rules(merge_gap=0.2))) == [(0.0, 0.4), (0.7, 0.8)]
    assert spans(tracked(p_P, rules(merge_gap=0.3))) == [(0.0, 0.8)]


def test_a_short_event_is_none_and_a_long_one_opens_when_it_has_lasted():
    found = tracked([0.9, 0.0, 0.0, 0.9, 0.9, 0.9, 0.0], rules(min_duration=0.2))
    assert [(event.number, event.onset, event.offset) for event in found] == [(1, 0.3, None), (1, 0.3, 0.6)]
    tracker = EventTracker(("dog",), rules(min_duration=0.2))
    assert tracker.update(steps_of(np.array([[0.9]]))) == []
    assert tracker.open_events == []
    assert [event.onset for event in tracker.update(steps_of(np.array([[0.9]]), first=1))] == [0.0]
    assert [event.number for event in tracker.open_events] == [1]


def test_pauses_count_for_the_duration_and_short_parts_are_joined_before_they_are_measured():
    assert spans(tracked([0.9, 0.0, 0.9, 0.0, 0.0], rules(min_duration=0.3, merge_gap=0.1))) == [(0.0, 0.3)]


def test_what_is_open_at_the_end_is_closed_with_its_last_active_step():
    assert spans(tracked([0.0, 0.9, 0.9], rules())) == [(0.1, 0.3)]
    assert spans(tracked([0.0, 0.9, 0.0], rules(merge_gap=5.0))) == [(0.1, 0.2)]
    assert tracked([0.0, 0.9], rules(min_duration=0.2)) == []


def in_other_words(p_P: np.ndarray, rules: EventRules) -> list[tuple[float, float]]:
    """The events of one tag with all steps at hand: runs, then merged runs, then those that last."""
    runs: list[list[int]] = []
    active = False
    for step, p in enumerate(p_P):
        active_now = bool(p >= rules.off) if active else bool(p >= rules.threshold)
        if active_now and not active:
            runs.append([step, step + 1])
        elif active_now:
            runs[-1][1] = step + 1
        active = active_now
    merged: list[list[int]] = []
    for begin, end in runs:
        if merged and (begin - merged[-1][1]) * STEP <= rules.merge_gap + 1e-9:
            merged[-1][1] = end
        else:
            merged.append([begin, end])
    lasting = [(b, e) for b, e in merged if (e - b) * STEP >= rules.min_duration - 1e-9]
    return [(round(b * STEP, 3), round(e * STEP, 3)) for b, e in lasting]


@pytest.mark.parametrize("seed", range(5))
def test_many_tags_at_random_give_the_events_of_the_definition_however_they_come(seed):
    rng = np.random.default_rng(seed)
    p_PC = (rng.random((300, 6)) ** rng.uniform(0.5, 2, 6)).astype(np.float32)
    chosen = EventRules(
        threshold=0.6,
        off=round(float(rng.uniform(0.2, 0.6)), 3),
        min_duration=round(float(rng.integers(0, 5)) * STEP, 3),
        merge_gap=round(float(rng.integers(0, 4)) * STEP, 3),
    )
    tracker, found, first = EventTracker(tuple("abcdef"), chosen), [], 0
    while first < 300:
        size = int(rng.integers(0, 20))
        found += tracker.update(steps_of(p_PC[first : first + size], first=first))
        first += size
    found += tracker.finish()
    for column, tag in enumerate("abcdef"):
        own = [event for event in found if event.tag == tag]
        assert spans(own) == in_other_words(p_PC[:, column], chosen)
    opened = [event.number for event in found if event.offset is None]
    closed = [event.number for event in found if event.offset is not None]
    assert opened == list(range(1, len(opened) + 1)), "each opens once, numbered in order"
    assert sorted(closed) == opened, "and closes once"
    assert tracker.opened == len(opened)


def test_without_hysteresis_these_are_the_events_of_detect():
    logits_FC = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    tags = ("a", "b", "c")
    expected = detect(logits_FC, tags, seconds=8.0, threshold=0.6, median_seconds=0.0)
    tracker = EventTracker(tags, EventRules(0.6, 0.6, min_duration=0.0, merge_gap=0.0))
    found = tracker.update(steps_of(logits_FC.sigmoid().numpy(), step=0.04)) + tracker.finish()
    closed = [(event.onset, event.offset, event.tag) for event in found if event.offset is not None]
    assert sorted(closed) == sorted((event.onset, event.offset, event.tag) for event in expected)
    assert len(closed) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"off": 0.7}, "off = 0.7: must be at most threshold = 0.5"),
        ({"threshold": 1.5}, "threshold = 1.5: must be between 0 and 1"),
        ({"off": 0.0}, "off = 0: must be between 0 and 1"),
        ({"off": float("nan")}, "off = nan: must be between 0 and 1"),
        ({"min_duration": -1.0}, "min_duration = -1: must be 0 s or more"),
        ({"merge_gap": float("inf")}, "merge_gap = inf: must be 0 s or more"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rules(**changes)
