"""Clients of a server of taggers: one upload, and many at once."""

import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; status 0: there was none, and `text` says why."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def form(content: bytes, name: str = "clip.wav") -> tuple[bytes, dict[str, str]]:
    """The body of a form with one file, and its headers."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(len(body))}


def ask(url: str, content: bytes | Path | None = None, *, method: str = "", **headers: str) -> Reply:
    """GET an address, or POST a file to it, on a connection of its own."""
    parts, body, sent = urlsplit(url), None, dict(headers)
    if content is not None:
        body, form_headers = form(content.read_bytes() if isinstance(content, Path) else content)
        sent |= form_headers
    began = time.perf_counter()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method or ("GET" if body is None else "POST"), target, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        return Reply(answer.status, text, {k.lower(): v for k, v in answer.getheaders()}, time.perf_counter() - began)
    except (OSError, http.client.HTTPException) as error:
        return Reply(0, repr(error), seconds=time.perf_counter() - began)
    finally:
        connection.close()


def ask_at_once(
    requests: Sequence[tuple[str, bytes]], *, clients: int, on_reply: Callable[[int], None] = lambda _: None
) -> list[Reply]:
    """All uploads, each to its address, by so many clients; the replies are in the order of the uploads.

    A client sends its next one after an answer. `on_reply` is called after each answer with the number of answers so
    far, one call at a time.
    """
    replies: dict[int, Reply] = {}
    waiting, lock = list(enumerate(requests)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                place, (url, content) = waiting.pop()
            reply = ask(url, content)
            with lock:
                replies[place] = reply
                on_reply(len(replies))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [replies[place] for place in range(len(requests))]
