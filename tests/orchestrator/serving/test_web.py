"""The HTTP interface without Ray: what is asked of it that it does not have."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.artifacts.tag import LoadedTagger, load_for_tagging
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.web import build_app
from tests.serving import publish_tagger
from workloads.data.decode import Sound
from workloads.evaluate.sounds import HeardSound, hear_sound


class HereHearing:
    """Hears in the process that asks, one sound after the other."""

    def __init__(self, folder: Path) -> None:
        self.options = ServeOptions(models={"vit": str(folder)})
        self.loaded = {"vit": load_for_tagging(str(folder))}
        self.decoders = ThreadPoolExecutor(1)

    async def hear(self, name: str, sound: Sound, *, frames: bool) -> HeardSound:
        loaded: LoadedTagger = self.loaded[name]
        return hear_sound(loaded.tagger, sound.x_T, loaded.long_clips, frames=frames)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(build_app(HereHearing(publish_tagger("vit", tmp_path_factory.mktemp("tagger")))))


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        (
            "GET",
            "/tags",
            404,
            "'/tags': no such address here; there are GET /openapi.json, GET /, GET /healthz, GET /models",
        ),
        ("GET", "/tag", 405, "/tag: takes POST"),
        ("DELETE", "/healthz", 405, "/healthz: takes GET"),
        ("POST", "/tag?model=cat", 404, "model 'cat': no such model here; there are vit"),
        ("POST", f"/tag?model={'x' * 9000}", 404, f"model '{'x' * 40}': no such model here; there are vit"),
    ],
)
def test_an_address_that_there_is_not_is_a_mistake_like_others(
    client: TestClient, method: str, target: str, status: int, detail: str
) -> None:
    reply: Any = client.request(method, target)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    assert reply.json()["detail"].startswith(detail)
    assert (reply.headers.get("allow") is not None) == (status == 405)


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_a_probe_may_ask_for_the_head_alone(client: TestClient, path: str) -> None:
    reply: Any = client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")


def test_a_form_that_cannot_be_read_is_a_mistake_that_the_interface_names(client: TestClient) -> None:
    reply: Any = client.post("/tag", content=b"--x\r\nno header", headers={"content-type": "multipart/form-data"})
    assert reply.status_code == 400
    assert reply.json()["detail"]
    interface: Any = client.get("/openapi.json").json()
    assert "400" in interface["paths"]["/tag"]["post"]["responses"]
