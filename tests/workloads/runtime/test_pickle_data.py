"""Pickles of names and numbers are read; what would run code, or is anything else, is refused and not run."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workloads.runtime.pickle_data import read_integers_by_name

ROWS = {"--4gqARaEJE": 0, "-0RWZT-miFs": 70_000, "__2MwJ2uHu0": 3, "negative": -5}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_dictionary_of_whole_numbers_is_read(protocol: int) -> None:
    assert read_integers_by_name(pickle.dumps(ROWS, protocol), "rows.pkl") == ROWS


@pytest.mark.parametrize("kind", ["i1", "u2", "<i4", ">i4", "<i8", ">u8"])
def test_numpy_s_integers_are_whole_numbers(kind: str) -> None:
    given = {name: np.dtype(kind).type(7 + number) for number, name in enumerate(ROWS)}
    given["big"] = np.array([100], kind)[0]
    found = read_integers_by_name(pickle.dumps(given), "rows.pkl")
    assert found == {name: int(value) for name, value in given.items()}
    assert {type(value) for value in found.values()} == {int}


class Runs:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    ran = tmp_path / "ran"
    hostile = {**ROWS, "zzz": Runs(os.mkdir, str(ran))}
    with pytest.raises(ValueError, match=r"^rows\.pkl: would call posix\.mkdir when it is read.*nothing of it was run"):
        read_integers_by_name(pickle.dumps(hostile, protocol), "rows.pkl")
    assert not ran.exists()
    pickle.loads(pickle.dumps(hostile, protocol))
    assert ran.exists(), "the pickle does run code where another reader reads it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(OrderedDict(ROWS)), r"would call collections\.OrderedDict"),
        (pickle.dumps({"a": np.float32(1)}), r"would call numpy\.dtype\('f4'\)"),
        (pickle.dumps({"a": np.array(3)}), r"would call numpy\.(_core|core)\.multiarray\._reconstruct"),
        (pickle.dumps([1, 2]), r"holds a list; a dictionary of names and whole numbers is expected"),
        (pickle.dumps({"a": 1, "b": 2.0}), r"entry 'b' leads from str to float"),
        (pickle.dumps({"a": True}), r"entry 'a' leads from str to bool"),
        (pickle.dumps({3: 1}), r"entry 3 leads from int to int"),
        (pickle.dumps(ROWS)[:-9], r"no readable pickle \("),
        (b"", r"no readable pickle \(Ran out of input\)"),
        # REDUCE of numpy's names with arguments that do not fit, and BUILD on the stand-in
        (b"cnumpy\ndtype\n(S'O8'\ntR.", r"would call numpy\.dtype\('O8'\)"),
        (b"cnumpy.core.multiarray\nscalar\n(S'i8'\nS'x'\ntR.", r"no readable pickle \(a number whose bytes"),
        (b"cnumpy.core.multiarray\nscalar\n}S'__call__'\nI1\nsb.", r"no readable pickle \("),
        (b"Psecret\n.", r"would call persistent_load of 'secret'"),
    ],
)
def test_anything_else_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^rows\.pkl: {message}"):
        read_integers_by_name(content, "rows.pkl")
