"""The taggers that a service serves, and how many replicas: the options of `antiphon serve` that a cluster needs."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.spec_table import Table

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Serve(Table):
    """Published taggers behind HTTP, all of them in each replica."""

    models: Mapping[str, str]  # name in requests -> s3://bucket/prefix, or a path of the image or a volume
    min: int = 1  # replicas that there always are
    max: int = 1  # replicas that there are at most; above min Ray Serve adds some where requests queue
    cpus: int = 1  # of each replica: its threads
    max_seconds: float = 300.0  # of a sound
    max_mb: float = 50.0  # of an upload, in 10^6 bytes
    batch_seconds: float = 60.0  # of sound that a replica hears at once
    ongoing: int = 16  # requests that a replica works on at once
    queued: int = 32  # requests that wait for a replica; further ones are refused with 503
    clients_namespace: str = ""  # whose pods may connect, where there is a network policy; empty: the service's own

    def __post_init__(self) -> None:
        self._require(
            bool(self.models), "models", 'must name a tagger, as { birds = "s3://bucket/runs/ID/models/cnn" }'
        )
        for name, uri in self.models.items():
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"models.{name}: must be letters, digits, '.', '_' and '-'")
            if not uri.startswith(("s3://", "/")):
                raise ValueError(
                    f"models.{name} = {uri!r}: must be s3://bucket/prefix, or an absolute path on every node"
                )
        self._require(self.min >= 1, "min", "must be 1 or more")
        self._require(self.max >= self.min, "max", f"must not be less than min ({self.min})")
        for name in ("cpus", "ongoing"):
            self._require(getattr(self, name) >= 1, name, "must be 1 or more")
        self._require(self.queued >= 0, "queued", "must be 0 or more")
        for name in ("max_seconds", "max_mb", "batch_seconds"):
            self._require(0 < getattr(self, name) < math.inf, name, "must be above 0")
