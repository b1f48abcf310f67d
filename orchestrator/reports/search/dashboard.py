"""A search's page, served: it looks for news by itself while the search runs. Knows the search's files and no more.

Meant for one reader on this machine: it binds to loopback unless told, has no accounts, and changes nothing.
"""

import socket
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

from orchestrator.reports.search import page as search_page
from orchestrator.reports.search.snapshot import Search, read_search
from orchestrator.storage.retry import describe_error

EVERY_S = 3.0  # how often a page asks
DRAWN_S = 60.0  # how often what goes on is drawn longer, where there is no news
LOOPBACK = ("127.0.0.1", "localhost")


class Watched:
    """A search as it was seen last, and its page's body. Several pages may ask at once; the files are read for one."""

    def __init__(self, uri: str) -> None:
        self._uri, self._lock = uri, threading.Lock()
        self.search = read_search(uri)
        self._looked = self._drawn = time.monotonic()
        self.stamp, self._body = "", ""

    def look(self) -> tuple[Search, str, str]:
        """The search, a stamp that changes with it, and the body of its page."""
        with self._lock:
            if time.monotonic() - self._looked >= EVERY_S / 2:
                before, silent = self.search, self._silent()
                self.search = read_search(self._uri, before=before)
                self._looked = time.monotonic()
                old = self.search.outcome is None and self._looked - self._drawn >= DRAWN_S
                if old or (self.search, self._silent()) != (before, silent):
                    self.stamp = ""
            if not self.stamp:
                self._drawn = self._looked
                self._body, self.stamp = search_page.body(self.search), uuid.uuid4().hex
            return self.search, self.stamp, self._body

    def _silent(self) -> bool:
        now = time.time()
        return self.search.active_until(now) < now


def app(uri: str, *, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The pages of the search at `uri`: / and /fragment. ValueError where no search is.

    `hosts` are the names under which it answers: a page from elsewhere that has its own name point to this machine
    (DNS rebinding) gets nothing.
    """
    watched = Watched(uri)

    def page(request: Request) -> HTMLResponse:
        search, stamp, body = watched.look()
        every_s = EVERY_S if search.outcome is None else None
        return HTMLResponse(search_page.page(search, body=body, every_s=every_s, stamp=stamp))

    def fragment(request: Request) -> JSONResponse:
        search, stamp, body = watched.look()
        news = body if request.query_params.get("seen") != stamp else None
        return JSONResponse({"stamp": stamp, "html": news, "live": search.outcome is None})

    def away(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": describe_error(error)}, status_code=503)

    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)), Middleware(GZipMiddleware)]
    return Starlette(
        routes=[Route("/", page), Route("/fragment", fragment)],
        middleware=guards,
        exception_handlers={OSError: away, ValueError: away},  # a store that is away; it may come back
    )


def serve(uri: str, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the search's page until interrupted; `ready` is called with its address. Port 0: a free one.

    Raises ValueError where no search is, or where the address cannot be had.
    """
    guarded = LOOPBACK if host in LOOPBACK else ("*",)  # whoever opens it to others names it as they like
    application = app(uri, hosts=guarded)
    config = uvicorn.Config(application, log_level="warning")
    with listen(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free one. ValueError where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host!r} --port {port}: cannot be had ({error}); choose others, or port 0") from None
