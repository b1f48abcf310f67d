"""Runs the taggers' server: Ray, Ray Serve, the application; until it is stopped.

Contract: one call serves until a signal; Ray and Ray Serve that it has started end with it. On a cluster that it only
connects to, Ray Serve must not run yet: its HTTP options are the cluster's, and ending it would end others' services.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from orchestrator.serving.hosts import http_address, listen
from orchestrator.serving.options import APPLICATION, REQUEST_S, ServeOptions
from orchestrator.serving.proxy_answers import PROXY_ANSWERS
from orchestrator.storage import object_store, published_folders
from orchestrator.training.ray_cluster import RayConnection, connect, prepare_environment
from orchestrator.training.signals import Interrupts
from workloads.runtime.checkpoint import read_state
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.json_files import TaggerState, require_shape
from workloads.runtime.scratch import scratch_folder

POLL_S = 0.5
CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"


@dataclass(frozen=True)
class Address:
    """Where the server listens, and the Ray that it runs on: "" is one of its own."""

    host: str
    port: int
    ray: str = ""


class NamedModel(NamedTuple):
    """Where a tagger lies, and the seconds of its clips."""

    uri: str
    clip_seconds: float


def named_models(models: list[str]) -> dict[str, NamedModel]:
    """MODEL... as typed, NAME=URI or URI, by name: that of the tagger where none is given. Local paths are absolute.

    Raises ValueError for what is no published tagger, and for two of one name.
    """
    found: dict[str, NamedModel] = {}
    for typed in models:
        name, _, uri = typed.rpartition("=")
        if "/" in name:  # a folder's name may hold a =
            name, uri = "", typed
        state = _tagger_state(uri)
        name = name or state["name"]
        if name in found:
            raise ValueError(f"MODEL {typed!r}: there is another one called {name!r}; give one of them as NAME=URI")
        absolute = str(object_store.local_path(uri)) if object_store.is_local(uri) else uri
        found[name] = NamedModel(absolute, state["clip_seconds"])
    return found


def _tagger_state(uri: str) -> dict[str, Any]:
    with scratch_folder() as scratch:
        state = read_state(published_folders.fetch(uri, scratch), uri)
    if state.get("kind") != "tagger":
        raise ValueError(f"checkpoint {uri}: holds a training state, not a tagger; taggers are under models/NAME")
    require_shape(state, f"checkpoint {uri}: state.json", TaggerState)
    return state


def serve_taggers(options: ServeOptions, address: Address, *, ready: Callable[[str, list[str]], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. `ready` is called once, with the address and those of the nodes' metrics.

    Raises ValueError for a port that is taken, taggers that a node does not see and a cluster on which Ray Serve runs;
    Unavailable where no cluster answers.
    """
    listen(address.host, address.port).close()  # Ray Serve would report it from another process, after half a minute
    os.environ |= PROXY_ANSWERS
    ray_address = prepare_environment(address.ray)
    import ray
    from ray import serve

    from orchestrator.serving.deployment import build

    with Interrupts() as interrupts:
        try:
            connection = connect(ray, ray_address, at_least=options.replicas * options.threads + 1)
            interrupts.install()
            _require_usable(ray, connection, options.models)
            with _serve_running(serve, address):
                serve.run(build(asdict(options)), name=APPLICATION, route_prefix="/")
                interrupts.check()
                ready(http_address(address.host, address.port), _metrics_addresses(ray))
                while True:
                    time.sleep(POLL_S)
                    interrupts.check()
        except KeyboardInterrupt:
            return
        finally:
            ray.shutdown()


@contextmanager
def _serve_running(serve: Any, address: Address) -> Iterator[None]:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells every step
    http = {"host": address.host, "port": address.port, "request_timeout_s": REQUEST_S}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config={"log_level": "WARNING"})
    try:
        yield
    finally:
        serve.shutdown()


def _require_usable(ray: Any, connection: RayConnection, models: Mapping[str, str]) -> None:
    if connection.own:
        return
    try:
        ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        pass
    else:
        raise ValueError(
            "--address: Ray Serve runs on this cluster already, and has one HTTP address; end it, or have the "
            "cluster's own configuration name the import path orchestrator.serving.deployment:build"
        )
    for uri in models.values():
        marker = object_store.join(published_folders.published_folder(uri), MARKER)
        connection.require_visible(ray, marker, option="MODEL")


def _metrics_addresses(ray: Any) -> list[str]:
    """Where Prometheus reads each node's metrics."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
