"""What Ray Serve's proxy answers itself is JSON, and a request is never left without an answer."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from cluster.kuberay_pods import SERVE_ENVIRONMENT
from orchestrator.serving.proxy_answers import DIED, PROXY_ANSWERS, JsonAnswers, middlewares


def client(answer: Callable[[Request], Response]) -> TestClient:
    app = Starlette(routes=[Route("/", answer)], middleware=middlewares())
    return TestClient(app, raise_server_exceptions=False)


async def silent(scope: Any, receive: Any, send: Any) -> None:
    """An application that ends without an answer, as Ray Serve's does when a replica dies."""


def test_a_request_without_an_answer_may_be_sent_again() -> None:
    reply = TestClient(JsonAnswers(silent)).post("/tag")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json() == {"detail": DIED}


@pytest.mark.parametrize(
    ("answer", "status", "detail", "retry_after"),
    [
        (PlainTextResponse("Request 7 timed out\nafter 300.0s.", 408), 408, "Request 7 timed out after 300.0s.", None),
        (PlainTextResponse('"unavailable"', 503), 503, "unavailable", "1"),
        (PlainTextResponse("full", 503, {"Retry-After": "9"}), 503, "full", "9"),
        (JSONResponse({"detail": "diverged"}, 500), 500, "diverged", None),
    ],
)
def test_errors_are_json_with_their_status(answer: Response, status: int, detail: str, retry_after: str | None) -> None:
    reply = client(lambda _: answer).get("/")
    assert (reply.status_code, reply.headers.get("retry-after")) == (status, retry_after)
    assert reply.json() == {"detail": detail}
    assert int(reply.headers["content-length"]) == len(reply.content)


def test_what_is_no_error_is_left_as_it_is() -> None:
    reply = client(lambda _: PlainTextResponse("tags", 200)).get("/")
    assert (reply.text, reply.headers["content-type"]) == ("tags", "text/plain; charset=utf-8")


def test_a_refused_host_and_an_error_of_the_framework_are_json() -> None:
    def refuse(_: Request) -> Response:
        raise HTTPException(418, "no")

    app = Starlette(routes=[Route("/", refuse)])
    guarded = JsonAnswers(TrustedHostMiddleware(app, allowed_hosts=["testserver"]))
    assert TestClient(guarded).get("/", headers={"host": "evil.example"}).json() == {"detail": "Invalid host header"}
    assert TestClient(guarded).get("/").json() == {"detail": "no"}


def test_kubernetes_sets_what_the_command_sets() -> None:
    assert SERVE_ENVIRONMENT == PROXY_ANSWERS
