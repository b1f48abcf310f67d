"""The deployment of Ray Serve: taggers in every replica, and batches by seconds of sound.

`build` is what `antiphon serve` runs and what a RayService names as its import path. In each replica one thread hears,
batch after batch; others decode. A sound longer than a batch is heard in several, so that it keeps nobody waiting for
long. A replica that dies loses the requests that it was working on: their clients get an answer of 503
(`proxy_answers.py`), and Ray Serve starts another one.
"""

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from ray import serve
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from orchestrator.artifacts.tag import load_for_tagging
from orchestrator.serving.options import RETRY_AFTER_S, ServeOptions
from orchestrator.serving.web import build_app
from workloads.data.decode import Sound
from workloads.evaluate.sounds import HeardPiece, HeardSound, Piece, cut_windows, hear_pieces, join_pieces
from workloads.runtime.cpu import memory_variables, use_cpu

MODEL = ("model",)


@dataclass(frozen=True)
class Work:
    """A piece of a sound that waits to be heard by a tagger."""

    model: str
    piece: Piece
    frames: bool
    seconds: float  # of its windows, padding included


def seconds_of(works: list[Work]) -> int:
    """What a batch is measured by."""
    return math.ceil(sum(work.seconds for work in works))


class Taggers:
    """One replica: Ray Serve makes it in a process of its own, and calls it in that process's event loop."""

    def __init__(self, options: ServeOptions) -> None:
        use_cpu(options.threads)
        self.options = options
        self.loaded = {name: load_for_tagging(uri) for name, uri in options.models.items()}
        for name, loaded in self.loaded.items():
            options.require_room(name, loaded.tagger.clip_seconds)
        self.decoders = ThreadPoolExecutor(options.threads, "decode")
        self._hearer = ThreadPoolExecutor(1, "hear")
        batches: Any = self._hear_batch  # Ray's decorator says nothing of its setters
        batches.set_max_batch_size(math.ceil(options.batch_seconds))
        batches.set_batch_wait_timeout_s(options.batch_wait_ms / 1000)
        self._sound_seconds = metrics.Counter(
            "antiphon_serve_sound_seconds_total", "Seconds of sound that were heard", MODEL
        )
        self._forward_seconds = metrics.Counter(
            "antiphon_serve_forward_seconds_total", "Seconds in which the network heard", MODEL
        )
        self._forwards = metrics.Counter("antiphon_serve_forwards_total", "Batches that were heard", MODEL)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self)

    async def hear(self, name: str, sound: Sound, *, frames: bool) -> HeardSound:
        """Hear a sound, in batches with others. Raises BadNumbers where a logit is not finite."""
        loaded = self.loaded[name]
        tagger = loaded.tagger
        windows = cut_windows(tagger, sound.x_T, loaded.long_clips)
        at_once = max(1, math.floor(self.options.batch_seconds / tagger.clip_seconds))
        pieces = windows.pieces(at_once)
        works = [Work(name, piece, frames, len(piece) * tagger.clip_seconds) for piece in pieces]
        heard = await asyncio.gather(*map(self._hear_batch, works))
        self._sound_seconds.inc(len(sound.x_T) / tagger.clip_rate, {"model": name})
        return join_pieces(tagger, windows, heard)

    @serve.batch(max_batch_size=1, batch_size_fn=seconds_of)
    async def _hear_batch(self, works: list[Work]) -> list[HeardPiece]:
        return await asyncio.get_running_loop().run_in_executor(self._hearer, self._hear_now, works)

    def _hear_now(self, works: list[Work]) -> list[HeardPiece]:
        """One forward for each tagger that the batch asks; with frames where one of its pieces wants them."""
        heard: dict[int, HeardPiece] = {}
        for name in {work.model: None for work in works}:
            own = [(place, work) for place, work in enumerate(works) if work.model == name]
            began = time.perf_counter()
            found = hear_pieces(
                self.loaded[name].tagger,
                [work.piece for _, work in own],
                frames=any(work.frames for _, work in own),
            )
            self._forward_seconds.inc(time.perf_counter() - began, {"model": name})
            self._forwards.inc(1, {"model": name})
            for (place, work), piece in zip(own, found, strict=True):
                # all pieces of a sound have frames, or none: others of it may be in a batch where nobody wants them
                heard[place] = piece if work.frames else piece._replace(frames=[])
        return [heard[place] for place in range(len(works))]


def _scaling(options: ServeOptions) -> dict[str, Any]:
    """A fixed number of replicas, or more where each has more than half of the requests that it may work on."""
    if options.max_replicas <= options.replicas:
        return {"num_replicas": options.replicas}
    target = max(1.0, options.ongoing / 2)
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=options.replicas, max_replicas=options.max_replicas, target_ongoing_requests=target
        )
    }


def build(values: dict[str, Any]) -> serve.Application:
    """The application of these options, as a configuration file holds them; ValueError for mistakes.

    Called on the cluster where a configuration file names it, so its environment there says how memory is to be kept.
    """
    options = TypeAdapter(ServeOptions).validate_python(values)
    deployment = serve.deployment(
        name="taggers",
        **_scaling(options),
        # hearing is no task of a replica's main thread, whose memory `use_cpu` keeps
        ray_actor_options={"num_cpus": options.threads, "runtime_env": {"env_vars": memory_variables()}},
        max_ongoing_requests=options.ongoing,
        max_queued_requests=options.queued,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=30.0,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return deployment(serve.ingress()(Taggers)).bind(options)
