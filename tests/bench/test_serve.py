"""Requests a second and their latency: `antiphon serve` beside a plain FastAPI server that hears one request at a time.

Both hear the same uploads with the same tagger through the same code (decode, windows, forward) with one thread.
"""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from cluster.process_registry import free_ports
from tests.processes import killed_at_the_end
from tests.serving import publish, serving
from tests.uploads import ask, ask_at_once
from workloads.models.catalog import CATALOG

pytestmark = pytest.mark.bench
UPLOADS, CLIENTS, SECONDS, RATE = 96, (1, 8), 5.0, 44_100
REST_S = 15.0
TAGS = tuple(f"{number:03}" for number in range(527))
PLAIN = """
import io, sys
import torch, uvicorn
from fastapi import FastAPI, UploadFile
from orchestrator.artifacts.tag import load_for_tagging
from workloads.evaluate.sounds import hear_sound

torch.set_num_threads(1)
loaded = load_for_tagging(sys.argv[1])
app = FastAPI()

@app.get("/healthz")
async def healthz():
    return "ok"

@app.post("/tag")
async def tag(file: UploadFile):
    sound = loaded.load(file.file)
    tags = loaded.tags(hear_sound(loaded.tagger, sound.x_T, loaded.long_clips), top=5)
    return {"tags": [{"tag": tag, "probability": value} for tag, value in tags]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@contextmanager
def plain_server(tagger: Path) -> Iterator[tuple[str, int]]:
    """The address and the pid of the plain server."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-c", PLAIN, str(tagger), str(port)])
    with killed_at_the_end(process):
        while ask(f"http://127.0.0.1:{port}/healthz").status != 200:
            assert process.poll() is None, "the plain server has ended"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process.pid


def cpu_seconds(pid: int) -> float:
    """What a process and all that it has started have taken so far."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def measure(url: str, pid: int, sounds: list[bytes], clients: int) -> dict[str, float]:
    """Requests a second, a CPU second, and quantiles of their latency in milliseconds."""
    requests = [(f"{url}/tag", sound) for sound in sounds]
    ask_at_once(requests[:8], clients=clients)  # warm
    before, began = cpu_seconds(pid), time.perf_counter()
    replies = ask_at_once(requests, clients=clients)
    took, cpu = time.perf_counter() - began, cpu_seconds(pid) - before
    assert {reply.status for reply in replies} == {200}
    latencies = np.array([1000 * reply.seconds for reply in replies])
    return {
        "a second": len(replies) / took,
        "a CPU second": len(replies) / cpu,
        "p50 / ms": float(np.quantile(latencies, 0.5)),
        "p99 / ms": float(np.quantile(latencies, 0.99)),
    }


@pytest.mark.parametrize("name", ["mn04", "mn10"])
def test_requests_beside_a_plain_server(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, generator = CATALOG[name], np.random.default_rng(0)
    tagger = publish(name, tmp_path, model, tags=TAGS, clip_seconds=10.0, rate=model.front_end.rate)
    sounds = []
    for _ in range(UPLOADS):
        file = io.BytesIO()
        soundfile.write(file, generator.uniform(-0.3, 0.3, round(SECONDS * RATE)), RATE, format="WAV")
        sounds.append(file.getvalue())
    found: dict[str, list[dict[str, float]]] = {}
    with plain_server(tagger) as (url, pid):
        found["FastAPI"] = [measure(url, pid, sounds, clients) for clients in CLIENTS]
    with serving(tmp_path, taggers={name: tagger}) as server:
        before = cpu_seconds(server.process.pid)
        time.sleep(REST_S)
        at_rest = (cpu_seconds(server.process.pid) - before) / REST_S
        found["serve"] = [measure(server.url, server.process.pid, sounds, clients) for clients in CLIENTS]
    with capsys.disabled():
        print(f"\n{name}, 527 tags, uploads of {SECONDS:g} s of WAV at {RATE} Hz, heard as 10 s; one thread")
        print(
            f"  at rest the processes of serve take {100 * at_rest:.1f} % of a core, which is in its CPU seconds below"
        )
        for place, clients in enumerate(CLIENTS):
            for kind, values in found.items():
                shown = ", ".join(f"{what} {value:.1f}" for what, value in values[place].items())
                print(f"  {clients} clients, {kind:8} {shown}")
            ratio = found["serve"][place]["a CPU second"] / found["FastAPI"][place]["a CPU second"]
            print(f"  {clients} clients: serve handles {ratio:.2f} times as many requests a CPU second")
