"""Numbers of a data set: durations against the window, rates, and clips of each tag by part and fold."""

import pytest

from workloads.data.clips import Clip, Dataset
from workloads.data.decoded import DecodedClip
from workloads.data.splits import Splits
from workloads.data.statistics import durations, part_folds, rates, tag_counts


def decoded(seconds: float, own_rate: int = 8000) -> DecodedClip:
    return DecodedClip(samples=round(seconds * 100), rate=100, own_rate=own_rate)


def test_durations_padding_and_what_one_window_leaves_out() -> None:
    found = durations([decoded(1.0), decoded(2.0), decoded(6.0), decoded(3.0)], 2.0)
    assert (found.clips, found.min, found.median, found.max, found.total) == (4, 1.0, 2.5, 6.0, 12.0)
    assert found.padding == pytest.approx(1 / 8)  # 1 s of four windows of 2 s
    assert (found.longer, found.unheard) == (2, pytest.approx(5 / 9))  # of 6 s and 3 s, 4 s are heard
    assert (durations([decoded(1.0)], 2.0).longer, durations([decoded(1.0)], 2.0).unheard) == (0, 0.0)


def test_rates_are_counted_in_ascending_order() -> None:
    assert list(rates([decoded(1, 44_100), decoded(1, 8000), decoded(1, 44_100)]).items()) == [(8000, 1), (44_100, 2)]


def test_tags_are_counted_by_part_and_fold_the_rarest_first() -> None:
    rows = [("a", ("x",), 1), ("b", ("x", "y"), 2), ("c", ("x",), 3), ("d", (), 3)]
    a, b, c, d = (Clip(name, name, tags, fold, name) for name, tags, fold in rows)
    dataset, splits = Dataset((a, b, c, d), ("x", "y"), "multi"), Splits((b, d), (c,), (a,))
    counts = tag_counts(dataset, splits)
    assert list(counts) == ["y", "x"]
    assert (counts["x"].clips, counts["x"].parts, counts["x"].folds) == (
        3,
        {"train": 1, "val": 1, "test": 1},
        {1: 1, 2: 1, 3: 1},
    )
    assert (counts["y"].parts, counts["y"].folds) == ({"train": 1, "val": 0, "test": 0}, {1: 0, 2: 1, 3: 0})
    assert part_folds(splits) == {"train": [2, 3], "val": [3], "test": [1]}
