"""Which functions and classes a pickle wants called while it is read; nothing of it is run."""

import io
import pickle
import pickletools
import re
import zipfile


def refused_global(data: bytes, error: Exception) -> str:
    """The function or class that the file wants called while it is read, if that is why torch refused it; else empty.

    Torch names it, except in pickles of a newer protocol than its own, whose instructions are searched for it.
    """
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    named = re.search(r"nsupported (?:global: )?GLOBAL (\S+)", str(error))
    if named:
        return named[1] if "." in named[1] else f"builtins.{named[1]}"
    strange = [name for name in _globals(data) if not name.startswith(("torch.", "collections.OrderedDict"))]
    return next(iter(strange), "")


def _globals(data: bytes) -> list[str]:
    """The names of the functions and classes that a file's pickle mentions; nothing of it is run.

    A pickle that is no pickle, or is cut off, gives those up to the fault; a damaged archive gives none.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = next((archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")), b"")
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):  # as for a wrong checksum
            return []
    names: list[str] = []
    texts: list[str] = []  # as they are pushed: STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = texts[-1] if texts else ""
            elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
                texts.append(memo.get(argument, ""))
            elif isinstance(argument, str):
                texts.append(argument)
    except ValueError:
        pass
    return names
