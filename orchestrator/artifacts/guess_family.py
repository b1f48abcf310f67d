"""The family of a file of weights whose publisher does not name it: the one whose reader takes all of its tensors.

Does not depend on how files are read.
"""

from typing import Any

from orchestrator.artifacts.weights_file import OtherNetwork, find_weights
from workloads.models.official.converted import Converted, ConvertedEncoder
from workloads.models.official.projects import SOURCES, converter


def guess_family(loaded: Any, file: str) -> str:
    """The only family as whose network the content of `file` can be read; ValueError where there is none, or several.

    Every family's reader is tried: each checks every name and shape, so that no other network passes.
    """
    fitting: dict[str, None] = {}
    reasons: dict[str, str] = {}
    faults: dict[str, None] = {}
    for module, family in {source.module: family for family, source in SOURCES.items()}.items():
        reader = converter(family)
        try:
            found = find_weights(loaded, reader.MARKS, file, module)
        except OtherNetwork:
            continue
        except ValueError as error:  # its tensors are there, and cannot be used; or there are none at all
            faults[str(error)] = None
            continue
        try:
            converted: Converted | ConvertedEncoder = reader.convert(found.state)
        except ValueError as error:
            reasons[family] = str(error)
            continue
        actual = converted.model.arch.family
        fitting[actual if actual in SOURCES else family] = None
    if len(fitting) == 1:
        return next(iter(fitting))
    if fitting:
        raise ValueError(f"{file}: fits the families {' and '.join(fitting)}; say which with --family")
    if faults and not reasons:
        raise ValueError(next(iter(faults)))
    near = "; ".join(f"{family}: {reason}" for family, reason in reasons.items())
    raise ValueError(
        f"{file}: is no network of a known family ({', '.join(SOURCES)})" + (f"; nearest: {near[:600]}" if near else "")
    )
