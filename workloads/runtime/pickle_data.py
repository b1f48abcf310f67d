"""Data in a pickle, read without calling anything that the pickle names. Does not depend on what it means.

Python's own reader runs code only through the functions and classes that a pickle names (`Unpickler.find_class`). Here
it gets stand-ins for the two names of numpy's numbers, and every other name is refused.
"""

import io
import pickle
from typing import Any

SCALAR_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since
INTEGERS = {f"{kind}{size}": (size, kind == "i") for kind in "iu" for size in (1, 2, 4, 8)}  # size, whether signed


def read_integers_by_name(content: bytes, name: str) -> dict[str, int]:
    """The dictionary from text to integers in a pickle called `name`; numpy's integers count as such.

    Raises ValueError where it holds anything else, naming what it would have called, and where it is damaged.
    """
    try:
        found = _DataReader(io.BytesIO(content)).load()
    except _Refused as refused:
        raise ValueError(
            f"{name}: would call {refused} when it is read, which may be any code; nothing of it was run; a dictionary "
            "of names and whole numbers is expected"
        ) from None
    except Exception as error:  # pickle raises errors of many types for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name}: no readable pickle ({reason}); copy it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: holds a {type(found).__name__}; a dictionary of names and whole numbers is expected")
    for key, value in found.items():
        if type(key) is not str or type(value) is not int:
            kinds = f"{type(key).__name__} to {type(value).__name__}"
            raise ValueError(f"{name}: entry {key!r} leads from {kinds}; only text to whole numbers is expected")
    return found


class _Refused(Exception):
    """A name that the pickle wants called."""


class _DataReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _TypeStandIn()
        if module in SCALAR_MODULES and name == "scalar":
            return _ScalarStandIn()
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"persistent_load of {pid!r}"[:100])


class _IntegerType:
    """What is known of a numpy type: that it is an integer of so many bytes in this order."""

    __slots__ = ("order", "signed", "size")  # no dictionary that a pickle could fill

    def __init__(self, code: str) -> None:
        if code not in INTEGERS:
            raise _Refused(f"numpy.dtype({code!r})"[:100])
        self.size, self.signed = INTEGERS[code]
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            raise ValueError("a type of numbers without an order of bytes")
        self.order = state[1]


class _TypeStandIn:
    """Called as numpy.dtype is."""

    __slots__ = ()

    def __call__(self, code: str, *_: Any) -> _IntegerType:
        return _IntegerType(code)


class _ScalarStandIn:
    """Called as numpy's function that makes a number of bytes is."""

    __slots__ = ()

    def __call__(self, kind: _IntegerType, content: bytes) -> int:
        if type(kind) is not _IntegerType or type(content) is not bytes or len(content) != kind.size:
            raise ValueError("a number whose bytes do not fit its type")
        return int.from_bytes(content, "big" if kind.order == ">" else "little", signed=kind.signed)
