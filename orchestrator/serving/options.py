"""What a server of taggers is told: which taggers, its limits, how it batches. Plain values, which Ray Serve's
configuration files hold too; imports neither torch nor Ray."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from workloads.config.checked import Checked

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
APPLICATION = "antiphon"  # in Ray Serve
RETRY_AFTER_S = 1  # what a refused client is told to wait
REQUEST_S = 300.0  # the most that a request may take, its upload included
MB = 1_000_000


@dataclass(frozen=True)
class ServeOptions(Checked):
    """The taggers of every replica by name, and how many sounds of which size it takes."""

    models: Mapping[str, str]  # name in requests -> URI; the first is heard where a request names none
    max_seconds: float = 300.0  # of a sound
    max_mb: float = 50.0  # of an upload, in 10^6 bytes
    batch_seconds: float = 60.0  # of sound that are heard in one forward, padding included
    batch_wait_ms: float = 5.0  # how long the first sound of a batch waits for others
    ongoing: int = 16  # requests that a replica works on at once
    queued: int = 32  # requests that wait for a replica; further ones are refused with 503
    replicas: int = 1  # at least
    max_replicas: int = 0  # above `replicas`: Ray Serve adds some where requests queue; 0: as many as `replicas`
    threads: int = 1  # of each replica, and CPUs that Ray reserves for it
    url_prefixes: tuple[str, ...] = ()  # clients may name sounds at these addresses; none: uploads only
    hosts: tuple[str, ...] = ("*",)  # names in the Host header that are answered

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("MODEL: name one published tagger or more, as RUN/models/NAME")
        for name in self.models:
            if not NAME.fullmatch(name):
                raise ValueError(f"MODEL {name!r}: a name must be letters, digits, '.', '_' and '-'; give NAME=URI")
        self._require_positive("max_seconds", "max_mb", "batch_seconds", "ongoing", "replicas", "threads")
        self._require_non_negative("batch_wait_ms", "queued", "max_replicas")
        for name in ("max_seconds", "max_mb", "batch_seconds", "batch_wait_ms"):
            self._require(math.isfinite(getattr(self, name)), name, "must be finite")
        for prefix in self.url_prefixes:
            if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d+)?/([A-Za-z0-9._~-]+/)*", prefix):
                raise ValueError(
                    f"url_prefixes {prefix!r}: must be http:// or https://, a host and a path that ends in /, as "
                    "https://example.org/sounds/"
                )

    def require_room(self, name: str, clip_seconds: float) -> None:
        """ValueError where a clip of the tagger called `name` is longer than a batch may be."""
        if clip_seconds > self.batch_seconds:
            raise ValueError(
                f"batch_seconds = {self.batch_seconds:g}: must be {clip_seconds:g} or more, the clip length of {name!r}"
            )

    @property
    def max_bytes(self) -> int:
        return round(self.max_mb * MB)
