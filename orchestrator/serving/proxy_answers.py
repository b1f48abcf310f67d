"""Answers of Ray Serve's own: made JSON like the application's, and given where it gives none.

Ray Serve calls `middlewares` in its proxy's process, which knows no tagger: PROXY_ANSWERS names it, read when that
process starts. A replica that dies leaves requests without any answer, which a web server reports as 500, as if the
request were at fault; it is safe to send it again, so they get 503 with Retry-After.
"""

import json
from contextlib import suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serving.options import RETRY_AFTER_S

PROXY_ANSWERS = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.serving.proxy_answers:middlewares"}
DIED = "the process that worked on this request has ended; another one starts: send the request again"
RETRY_AFTER = {"retry-after": str(RETRY_AFTER_S)}


def middlewares() -> list[Middleware]:
    """What the proxy puts around all that it answers."""
    return [Middleware(JsonAnswers)]


class JsonAnswers:
    """An ASGI middleware: errors in plain text become JSON with `detail`, and each 503 says when to come again.

    A request that the application ended without an answer gets one of 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start: Message | None = None  # of an error in plain text: kept until its text is known
        text, answered = b"", False

        async def rewritten(message: Message) -> None:
            nonlocal start, text, answered
            answered = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                if message["status"] == 503:
                    headers.setdefault("retry-after", RETRY_AFTER["retry-after"])
                if message["status"] >= 400 and not headers.get("content-type", "").startswith("application/json"):
                    start = message
                    return
            elif start is not None:
                text += message.get("body", b"")
                if not message.get("more_body", False):
                    await _problem(start, text)(scope, receive, send)
                return
            await send(message)

        await self._app(scope, receive, rewritten)
        if not answered:
            await JSONResponse({"detail": DIED}, 503, RETRY_AFTER)(scope, receive, send)


def _problem(start: Message, text: bytes) -> JSONResponse:
    """An error's text as JSON, with its status and its other headers."""
    headers = MutableHeaders(raw=list(start["headers"]))
    for name in ("content-type", "content-length"):
        del headers[name]
    return JSONResponse({"detail": _one_line(text)}, start["status"], dict(headers))


def _one_line(text: bytes) -> str:
    """Ray Serve writes a text as such or as JSON's."""
    said: Any = text.decode(errors="replace")
    with suppress(ValueError):
        said = json.loads(said)
    return " ".join(str(said).split())
