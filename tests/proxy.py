"""A TCP proxy in front of a server that can delay answers, and cut or suspend a chosen request."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

CHUNK = 1 << 16
END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100"  # asks for the body, is not the answer yet
ABRUPTLY = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, as when a connection breaks


class Proxy:
    """Forwards connections to `endpoint` to the server; a context manager that resets open connections at its end.

    One fault can be set at a time, by the test's thread: it applies once, to the next request whose first 64 KiB hold
    the given text. Two threads per connection forward requests and answers. `delay_s` delays every chunk of an answer.
    """

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        self._server = (url.hostname, url.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_s = 0.0
        self.applied_at = 0.0  # time.time() at which the fault was applied; 0: not yet
        self.held = threading.Event()  # set once a request is suspended
        self._text, self._fault = b"", "pass"
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: list[socket.socket] = []

    def cut_at(self, text: str) -> None:
        """Reset the connection in the middle of the request."""
        self._text, self._fault = text.encode(), "cut"

    def hold_at(self, text: str) -> None:
        """Suspend the request in its middle until the proxy is closed."""
        self._text, self._fault = text.encode(), "hold"

    def lose_answer_to(self, text: str) -> None:
        """Reset the connection instead of forwarding the server's answer to the request."""
        self._text, self._fault = text.encode(), "drop"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._listener.close()
        self._closing.set()
        _reset(*self._connections)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the proxy was closed
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # the server is down, and so the proxy is
                _reset(client)
                continue
            self._connections += [client, server]
            drop_answer = threading.Event()
            for pump in (self._requests, self._answers):
                threading.Thread(target=pump, args=(client, server, drop_answer), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, drop_answer: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                fault = self._fault_for(data)
                if fault in ("cut", "hold"):
                    self._send_half(data, client, server)
                    if fault == "hold":
                        self.held.set()
                        self._closing.wait()
                    break
                if fault == "drop":
                    drop_answer.set()
                server.sendall(data)
        _reset(client, server)

    def _fault_for(self, data: bytes) -> str:
        with self._lock:
            if not self._text or self._text not in data:
                return "pass"
            self._text, self.applied_at = b"", time.time()
            return self._fault

    def _send_half(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        """Send the request's head and half of the part of its body that has arrived."""
        body = data.partition(END_OF_HEAD)[2]
        if not body:  # the client sends it after the server's 100 Continue
            server.sendall(data)
            data = body = client.recv(CHUNK)
        server.sendall(data[: -len(body) // 2])

    def _answers(self, client: socket.socket, server: socket.socket, drop_answer: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if drop_answer.is_set() and not data.startswith(CONTINUE):
                    break
                time.sleep(self.delay_s)
                client.sendall(data)
        _reset(client, server)


def _reset(*connections: socket.socket) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPTLY)
            connection.shutdown(socket.SHUT_RDWR)  # wakes the other thread
        connection.close()
