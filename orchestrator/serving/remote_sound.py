"""Sounds at addresses that a client names: only below the prefixes that whoever runs the server allows.

A server that fetches what strangers name reaches what they cannot: its own network, and the metadata of its cloud. So
there is no such address by default, redirections are not followed, and a path may not lead upwards.
"""

import http.client
import io
import urllib.error
import urllib.request
from typing import Any, BinaryIO, NoReturn

TIMEOUT_S = 20.0  # of each read
SUSPECT = ("..", "%", "\\", "@", "?", "#")  # in what comes after the prefix


class NotFetched(Exception):
    """Why there is no sound from an address, and the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> NoReturn:
        raise NotFetched(422, "url: the address redirects to another one, which is not followed")


def fetch_sound(url: str, prefixes: tuple[str, ...], *, max_bytes: int) -> BinaryIO:
    """The bytes at an address, in memory. Raises NotFetched where it is not allowed, not there, cut off, too large."""
    if not prefixes:
        raise NotFetched(403, "url: this server takes uploads only; send the sound as the form's field file")
    prefix = next((each for each in prefixes if url.startswith(each)), None)
    if prefix is None or any(part in url[len(prefix) :] for part in SUSPECT):
        raise NotFetched(403, f"url: must be a plain path below {' or '.join(prefixes)}")
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            size = answer.length  # None where its server does not say
            content: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        raise NotFetched(422, f"url: its server answers {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise NotFetched(422, f"url: cannot be fetched ({reason})") from None
    if len(content) > max_bytes:
        raise NotFetched(413, f"url: the file is larger than {max_bytes:,} bytes")
    if size is not None and len(content) < size:  # half a sound would be heard as a short one
        raise NotFetched(422, f"url: cannot be fetched (its server sent {len(content):,} of {size:,} bytes)")
    return io.BytesIO(content)
