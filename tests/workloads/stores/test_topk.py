"""The k largest values of a row: chosen as by sorting, and their tags coded without loss in a fixed number of bytes."""

import numpy as np
import pytest

from workloads.stores.topk import TagCode, select_topk


@pytest.mark.parametrize(("k", "tags"), [(1, 1), (1, 527), (20, 527), (50, 50), (7, 10), (3, 65536), (20, 20001)])
def test_sets_of_tags_come_back(k, tags):
    code, rng = TagCode(k, tags), np.random.default_rng(0)
    drawn = [np.sort(rng.choice(tags, k, replace=False)) for _ in range(50)]
    sets = np.array([*drawn, np.arange(k), np.arange(tags - k, tags)])
    stored = code.encode(sets)
    assert stored.shape == (52, code.size)
    assert np.array_equal(code.decode(stored), sets)
    assert code.decode(stored[:0]).shape == (0, k)
    assert code.is_sound(stored)


def test_twenty_of_527_tags_take_17_bytes():
    assert TagCode(20, 527).size == 17


def test_bytes_that_hold_no_set_are_found():
    code = TagCode(3, 16)
    sound = code.encode(np.array([[0, 5, 15]]))
    for place, bits in ((0, 0x3F), (code.size - 1, 0xFF), (code.size - 1, 0x00)):
        damaged = sound.copy()
        damaged[0, place] = bits
        assert not code.is_sound(damaged) or not np.array_equal(code.decode(damaged), [[0, 5, 15]])
    assert not code.is_sound(np.zeros_like(sound))
    assert not code.is_sound(np.full_like(sound, 0xFF))


def test_the_largest_are_chosen_and_of_equal_ones_the_first_tags():
    rng = np.random.default_rng(1)
    values = np.round(rng.normal(0, 1, (200, 40)), 1).astype(np.float16)  # many are equal
    values[0, 5], values[0, 6] = -0.0, 0.0
    for k in (1, 7, 40):
        chosen = select_topk(values, k)
        expected = np.sort(np.argsort(-values.astype(np.float32), axis=1, kind="stable")[:, :k], axis=1)
        assert np.array_equal(chosen, expected)
