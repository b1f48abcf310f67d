"""Refuses uploads that are too large: at their header, or as soon as more bytes have come than are allowed."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.serving.options import MB

FORM_BYTES = 10_000  # of a form's parts beside the file: names, boundaries


class BodyLimit:
    """An ASGI middleware for bodies of a file of `max_bytes` at most; the application sees no more than that."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes + FORM_BYTES:
            return await JSONResponse({"detail": self._problem}, status_code=413)(scope, receive, send)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes + FORM_BYTES:
                raise HTTPException(413, self._problem)
            return message

        await self._app(scope, bounded, send)

    @property
    def _problem(self) -> str:
        return f"the upload is larger than {self._max_bytes / MB:g} MB; cut the sound into parts, or send it as FLAC"
