"""Where the HTTP servers of this project listen, and under which names they answer."""

import ipaddress
import socket

LOOPBACK = ("127.0.0.1", "localhost")


def accepted_hosts(host: str) -> tuple[str, ...]:
    """The names in a request's Host header that are accepted by a server that listens on `host`.

    On a loopback address only this machine's own names, against DNS rebinding; other machines may know this one by any
    name.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host in LOOPBACK
    if not loopback:
        return ("*",)
    return (*LOOPBACK, f"[{host}]" if ":" in host else host)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one. Raises ValueError where the address cannot be bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--host {host!r} --port {port}: cannot listen there ({error}); choose others, or port 0"
        ) from None


def http_address(host: str, port: int) -> str:
    """The address of a server as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
