"""What a server fetches at a client's word: plain paths below its prefixes, and nothing else."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from orchestrator.serving.remote_sound import NotFetched, fetch_sound

CONTENT = b"RIFF and so on"


class Site(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/sounds/moved.wav":
            self.send_response(302)
            self.send_header("Location", "/secret")
            self.end_headers()
        elif self.path in ("/sounds/a.wav", "/secret"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a server on loopback."""
    Site.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def refused(url: str, site: str, *, max_bytes: int = 100) -> tuple[int, str]:
    with pytest.raises(NotFetched) as problem:
        fetch_sound(url, (f"{site}/sounds/",), max_bytes=max_bytes)
    return problem.value.status, str(problem.value)


def test_a_sound_below_a_prefix_is_fetched(site: str) -> None:
    prefixes = ("https://example.org/", f"{site}/sounds/")
    assert fetch_sound(f"{site}/sounds/a.wav", prefixes, max_bytes=len(CONTENT)).read() == CONTENT


@pytest.mark.parametrize(
    "path", ["/secret", "/sounds/../secret", "/sounds/%2e%2e/secret", "/soundsX/a.wav", "/sounds/a.wav?x=1", "/sounds"]
)
def test_what_is_not_below_a_prefix_is_not_asked_for(site: str, path: str) -> None:
    status, reason = refused(site + path, site)
    assert (status, reason) == (403, f"url: must be a plain path below {site}/sounds/")
    assert Site.asked == []


def test_redirections_are_not_followed(site: str) -> None:
    status, reason = refused(f"{site}/sounds/moved.wav", site)
    assert (status, "redirects" in reason) == (422, True)
    assert Site.asked == ["/sounds/moved.wav"]


def test_what_is_missing_too_large_or_away_is_named(site: str) -> None:
    assert refused(f"{site}/sounds/b.wav", site) == (422, "url: its server answers 404 Not Found")
    assert refused(f"{site}/sounds/a.wav", site, max_bytes=5) == (413, "url: the file is larger than 5 bytes")
    with pytest.raises(NotFetched, match="cannot be fetched"):
        fetch_sound("http://127.0.0.1:9/x", ("http://127.0.0.1:9/",), max_bytes=5)


def test_by_default_there_is_no_such_address(site: str) -> None:
    with pytest.raises(NotFetched, match="uploads only"):
        fetch_sound(f"{site}/sounds/a.wav", (), max_bytes=100)


@pytest.mark.parametrize(
    ("path", "sent", "reason"),
    [
        ("a.wav", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "SSH-2.0-OpenSSH_9.6"),
        ("a.wav", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "IncompleteRead(0 bytes read)"),
        ("a.wav", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nRIFF", "its server sent 4 of 100 bytes"),
        ("my dog.wav", b"", "URL can't contain control characters. '/my dog.wav' (found at least ' ')"),
    ],
)
def test_what_is_cut_off_or_no_http_is_not_heard(path: str, sent: bytes, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prefix = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread = threading.Thread(target=_send_once, args=(listener, sent))
        thread.start()
        try:
            with pytest.raises(NotFetched) as problem:
                fetch_sound(prefix + path, (prefix,), max_bytes=1000)
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends accept, where nothing was asked
            thread.join()
    assert (problem.value.status, str(problem.value)) == (422, f"url: cannot be fetched ({reason})")


def _send_once(listener: socket.socket, sent: bytes) -> None:
    """Answer one request with these bytes, and close."""
    try:
        connection, _ = listener.accept()
    except OSError:  # nobody asks
        return
    with connection:
        connection.recv(10_000)
        connection.sendall(sent)
