"""A TCP proxy in front of a server whose line can be made slow, cut, or held still at a chosen request."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

CHUNK = 1 << 16
END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100"  # an invitation to send the body, no answer yet
ABRUPTLY = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, as a broken line looks to the other side


class Proxy:
    """Forwards what arrives at `endpoint` to the server; a context manager, whose end breaks what is still open.

    One trap can be set at a time: it closes on the next request whose first 64 KiB hold the given words, once.
    `delay_s` keeps every chunk of an answer back.
    """

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        self._server = (url.hostname, url.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_s = 0.0
        self.closed_at = 0.0  # time.time() at which the trap closed; 0: not yet
        self.held = threading.Event()  # set once a request stands still
        self._words, self._fate = b"", "pass"
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._connections: list[socket.socket] = []

    def cut_at(self, words: str) -> None:
        """Break the connection in the middle of the request."""
        self._words, self._fate = words.encode(), "cut"

    def hold_at(self, words: str) -> None:
        """Let the request stand still in its middle for ever."""
        self._words, self._fate = words.encode(), "hold"

    def lose_answer_to(self, words: str) -> None:
        """Break the connection once the server has answered the request."""
        self._words, self._fate = words.encode(), "deafen"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._listener.close()
        self._over.set()
        _break(*self._connections)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the proxy was closed
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # the server is away, and so is the proxy
                _break(client)
                continue
            self._connections += [client, server]
            deaf = threading.Event()
            for pump in (self._requests, self._answers):
                threading.Thread(target=pump, args=(client, server, deaf), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                fate = self._judge(data)
                if fate in ("cut", "hold"):
                    self._half(data, client, server)
                    if fate == "hold":
                        self.held.set()
                        self._over.wait()
                    break
                if fate == "deafen":
                    deaf.set()
                server.sendall(data)
        _break(client, server)

    def _judge(self, data: bytes) -> str:
        with self._lock:
            if not self._words or self._words not in data:
                return "pass"
            self._words, self.closed_at = b"", time.time()
            return self._fate

    def _half(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        """Send the request's head whole and half of what is here of its body."""
        body = data.partition(END_OF_HEAD)[2]
        if not body:  # it comes once the server has said 100 Continue
            server.sendall(data)
            data = body = client.recv(CHUNK)
        server.sendall(data[: -len(body) // 2])

    def _answers(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if deaf.is_set() and not data.startswith(CONTINUE):
                    break
                time.sleep(self.delay_s)
                client.sendall(data)
        _break(client, server)


def _break(*connections: socket.socket) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPTLY)
            connection.shutdown(socket.SHUT_RDWR)  # wakes the other thread
        connection.close()
