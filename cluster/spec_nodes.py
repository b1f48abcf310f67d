"""The nodes of a cluster's spec: the head and groups of workers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.spec_speed import Speed
from cluster.spec_table import Table

REFERENCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+")  # a Kubernetes secret and a key in it
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
RESERVED = "ray.io/"  # labels that only Ray and we set


def require_reference(name: str, reference: str, *, or_empty: bool = False) -> None:
    if not (or_empty and not reference) and not REFERENCE.fullmatch(reference):
        raise ValueError(f"{name}: must be SECRET/KEY, the name of a Kubernetes secret and of a key in it")


def secret_reference(reference: str) -> dict[str, dict[str, str]]:
    """SECRET/KEY as Kubernetes has it."""
    name, _, key = reference.partition("/")
    return {"secretKeyRef": {"name": name, "key": key}}


@dataclass(frozen=True)
class Toleration(Table):
    """A taint of nodes that pods may be scheduled on nevertheless, as Kubernetes has it."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] = ""


@dataclass(frozen=True, kw_only=True)
class Node(Table):
    """What one node of the cluster has; on Kubernetes one pod, whose requests equal its limits."""

    cpus: float
    memory_gb: float  # GiB
    shared_memory_gb: float = 0.0  # GiB of it for /dev/shm: loaders, and Ray's objects in half of it; 0: a quarter
    labels: Mapping[str, str] = field(default_factory=dict)  # of the node in Ray, for label selectors
    node_selector: Mapping[str, str] = field(default_factory=dict)  # labels that Kubernetes' nodes must have
    tolerations: tuple[Toleration, ...] = ()
    price_per_hour: float = 0.0  # of one node, in any currency; 0: not known

    def __post_init__(self) -> None:
        self._require(self.cpus > 0, "cpus", "must be above 0")
        self._require(self.memory_gb >= 1, "memory_gb", "must be 1 or more")
        self._require(
            0 <= self.shared_memory_gb < self.memory_gb,
            "shared_memory_gb",
            f"must be 0 or more, and less than memory_gb ({self.memory_gb:g}), which it is a part of",
        )
        self._require(0 <= self.price_per_hour < math.inf, "price_per_hour", "must be 0 or more")
        self._require_labels("labels")
        self._require_labels("node_selector")
        for key in self.labels:
            if key.startswith(RESERVED):
                raise ValueError(f"labels.{key}: labels of {RESERVED} are Ray's own; use spot or accelerator for them")

    def _require_labels(self, name: str) -> None:
        for key, value in getattr(self, name).items():
            if not LABEL_KEY.fullmatch(key) or not LABEL.fullmatch(value):
                raise ValueError(
                    f"{name}.{key} = {value!r}: keys and values must be at most 63 letters, digits, '.', '_' and '-', "
                    "a letter or digit first and last"
                )

    @property
    def shm_gb(self) -> float:
        """GiB of /dev/shm."""
        return self.shared_memory_gb or self.memory_gb / 4


@dataclass(frozen=True)
class Redis(Table):
    """Where the head keeps its state, so that the cluster outlives it."""

    address: str  # HOST:PORT
    password: str = ""  # SECRET/KEY: the Kubernetes secret that holds it, and the key in it

    def __post_init__(self) -> None:
        self._require("@" not in self.address, "address", "must hold no password; name its secret in password")
        self._require(re.fullmatch(r"[^\s/]+:\d+", self.address) is not None, "address", "must be HOST:PORT")
        require_reference("password", self.password, or_empty=True)


@dataclass(frozen=True, kw_only=True)
class Head(Node):
    """The node that runs the driver and Ray's services and no tasks; it is never on a spot node."""

    redis: Redis | None = None


@dataclass(frozen=True, kw_only=True)
class Workers(Node):
    """A group of equal nodes that run the work."""

    min: int  # nodes that there always are
    max: int  # nodes that there are at most; above min the cluster scales by itself
    gpus: int = 0
    accelerator: str = ""  # Ray's name of the GPU, as A100: becomes the label ray.io/accelerator-type
    spot: bool = False  # may be taken away at any time: gets the label ray.io/market-type: spot
    speed: Speed = field(default_factory=Speed)  # what a node reaches, for `antiphon plan`

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.min >= 0, "min", "must be 0 or more")
        self._require(self.max >= max(self.min, 1), "max", f"must be 1 or more, and not less than min ({self.min})")
        self._require(self.gpus >= 0, "gpus", "must be 0 or more")
        self._require(not self.accelerator or self.gpus > 0, "accelerator", "needs gpus of 1 or more")
        self._require(LABEL.fullmatch(self.accelerator) is not None, "accelerator", "must be a label's value, as A100")

    @property
    def ray_labels(self) -> dict[str, str]:
        """The labels of the node in Ray."""
        market = {"ray.io/market-type": "spot"} if self.spot else {}
        accelerator = {"ray.io/accelerator-type": self.accelerator} if self.accelerator else {}
        return {**self.labels, **market, **accelerator}
