"""What a worker reserves on a Ray cluster, and on which nodes. Nothing of it changes what is learned."""

import re
from dataclasses import dataclass, field
from typing import Literal

from workloads.config.checked import Checked

# Kubernetes' syntax, which Ray's labels follow; a selector is a value, !value, in(a, b) or !in(a, b)
LABEL = re.compile(r"([A-Za-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
SELECTOR = re.compile(r"!?(?:in\((?P<among>[^()]*)\)|(?P<one>[^!()]*))")
VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, kw_only=True)
class Resources(Checked):
    """What one worker takes; zeros mean what `train` implies."""

    cpus: float = 0.0  # 0: one for each of train.threads and train.loaders
    gpus: float = 0.0  # 0: one where train.device = "cuda"
    memory_gb: float = 0.0  # 0: none is reserved
    accelerator: str = ""  # a kind of GPU by Ray's name, such as H100; empty: any
    labels: dict[str, str] = field(default_factory=dict)  # label of a node -> selector
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"

    def __post_init__(self) -> None:
        self._require_non_negative("cpus", "gpus", "memory_gb")
        self._require(self.gpus <= 1 or self.gpus == int(self.gpus), "gpus", "must be a whole number, or below 1")
        for label, selector in self.labels.items():
            if not LABEL.fullmatch(label) or not values_of(selector):
                raise ValueError(
                    f"labels.{label} = {selector!r}: must be a label of Ray's nodes with a value, !value, in(a, b) or "
                    "!in(a, b)"
                )


def values_of(selector: str) -> tuple[str, ...]:
    """The values that a selector names; empty where it is none."""
    match = SELECTOR.fullmatch(selector)
    if match is None:
        return ()
    values = tuple(part.strip() for part in (match["among"] or match["one"] or "").split(","))
    single = match["among"] is None and len(values) > 1
    return () if single or not all(VALUE.fullmatch(value) and value for value in values) else values


def selects(selector: str, value: str | None) -> bool:
    """Whether a node whose label has this value (None: it lacks the label) is meant."""
    return (value in values_of(selector)) != selector.startswith("!")
