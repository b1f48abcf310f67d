"""A server for a search's page, which refreshes itself while the search runs. Depends only on the search's files.

Meant for one reader on this machine: it binds to loopback unless told otherwise, has no accounts, and is read-only.
It may start and end at any time, during a search or after it, and any number of servers may serve the same search.
"""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from orchestrator.reports.search.page import render_body, render_page
from orchestrator.reports.search.snapshot import SearchSnapshot, read_search
from orchestrator.serving.hosts import LOOPBACK, accepted_hosts, http_address, listen
from orchestrator.storage.retry import describe_error

POLL_S = 3.0  # between two requests of an open page
RERENDER_S = 60.0  # after this time running trials are drawn longer, also if no file has changed


class CachedSearchPage:
    """The last snapshot of a search and the body rendered from it.

    Any thread may call `refresh`, any number of times; Starlette calls it from its thread pool, once per request. One
    thread at a time reads the files, at most every POLL_S / 2 seconds; the others wait for it and share what it read.
    A read that fails raises in the thread that tried it and keeps the last snapshot; the next call tries again.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._lock = uri, threading.Lock()
        self.search = read_search(uri)
        self._read_at = self._rendered_at = time.monotonic()
        self.stamp, self._body = "", ""

    def refresh(self) -> tuple[SearchSnapshot, str, str]:
        """The search, a stamp that changes whenever the body does, and the body.

        Raises ValueError and OSError as `read_search` does.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= POLL_S / 2:
                self._read()
            if not self.stamp:
                self._rendered_at = self._read_at
                self._body, self.stamp = render_body(self.search), uuid.uuid4().hex
            return self.search, self.stamp, self._body

    def _read(self) -> None:
        """Read what has changed; clears the stamp if the body must be rendered again."""
        before, had_no_updates = self.search, self._has_no_updates()
        self.search = read_search(self._uri, before=before)
        self._read_at = time.monotonic()
        is_due = self.search.outcome is None and self._read_at - self._rendered_at >= RERENDER_S
        if is_due or (self.search, self._has_no_updates()) != (before, had_no_updates):
            self.stamp = ""

    def _has_no_updates(self) -> bool:
        """Whether the page reports that the search may have been killed."""
        now = time.time()
        return self.search.active_until(now) < now


def app(uri: str, *, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The pages of the search at `uri`: / and /fragment. Raises ValueError where no search is.

    `hosts` are the host names that it accepts: a page from elsewhere whose name resolves to this machine (DNS
    rebinding) is refused.
    """
    cached = CachedSearchPage(uri)

    def page(request: Request) -> HTMLResponse:
        search, stamp, body = cached.refresh()
        poll_s = POLL_S if search.outcome is None else None
        return HTMLResponse(render_page(search, body=body, poll_s=poll_s, stamp=stamp))

    def fragment(request: Request) -> JSONResponse:
        search, stamp, body = cached.refresh()
        html = body if request.query_params.get("seen") != stamp else None
        return JSONResponse({"stamp": stamp, "html": html, "live": search.outcome is None})

    def unavailable(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": describe_error(error)}, status_code=503)

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(GZipMiddleware)]
    return Starlette(
        routes=[Route("/", page), Route("/fragment", fragment)],
        middleware=guards,
        exception_handlers={
            OSError: unavailable,
            ValueError: unavailable,
        },  # the storage may come back, so pages keep polling
    )


def serve(uri: str, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the search's page in this thread until interrupted (Ctrl-C). Port 0: a free one.

    `ready` is called once, with the address, after the socket listens. Raises ValueError where no search is, or where
    the address cannot be bound.
    """
    accepted = accepted_hosts(host)
    application = app(uri, hosts=accepted)
    config = uvicorn.Config(application, log_level="warning")
    with listen(host, port) as listening:
        ready(http_address(host, listening.getsockname()[1]))
        with suppress(KeyboardInterrupt):  # how the user ends it
            uvicorn.Server(config).run(sockets=[listening])
