"""Secrets within texts: recognised, and replaced before a text is stored or printed. Does not depend on who writes it.

What `orchestrator` and `workloads` store or print passes here: JSON through `json_files.json_text`, pages and cards
through their templates, lines of a command's result through `orchestrator/cli/printing.py`, logs and messages through
`RedactingStream`. What a URI may hold is a user name with a password, or a parameter such as `?token=` or
`X-Amz-Signature=`; error messages of other libraries quote URIs, options and requests whole or in part.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

REDACTED = "***"
# Of the text between one "://" and the next: up to what ends a user name, and up to what ends the authority.
USER = re.compile(r"""[^\s/?#:"<>\[]*""")
AUTHORITY = re.compile(r"[^\s/?#]*")
PORT = re.compile(r""":\d+[,;.)\]}]?(?:[/?#\s"'<>]|$)""")
SECRET = re.compile(
    r"passw(?:or)?d|pwd|secret|token|signature|credential|(?:api|access|private|account)[_-]?key", re.IGNORECASE
)
SHORT_SECRETS = ("sig", "auth", "key", "pass")  # these only in a URI: alone they mean other things
# name= or 'name': or "name": with the quotes escaped where JSON holds JSON. Possessive, so that no text is read twice.
ASSIGNMENT = re.compile(r"""(?<![\w.-])(?P<name>[\w.-]++)(?:=(?!\*\*\*)|\\{0,3}["']\s*+:\s*+(?P<quote>\\{0,3}["']))""")
VALUE = re.compile(r"""'[^']*'|"[^"]*"|[^\s"<>]*[^\s"'<>]""")
VALUE_IN_URI = re.compile(r"""'[^']*'|"[^"]*"|[^\s&#"<>]*[^\s&#"'<>]""")


def redacted(text: str) -> str:
    """The text with every secret in it replaced by ***; a text without one, or redacted before, is returned unchanged.

    Of http(s) URIs the user name is replaced too: many services take a token there. Of others it stays. Takes time in
    proportion to the text's length.
    """
    without_user_info = _without_user_info(text)
    without_assignments = _without_assigned_secrets(without_user_info)
    if without_assignments == without_user_info:
        return without_assignments
    return _without_user_info(without_assignments)  # a quoted value may have hidden an @ behind it


def _without_user_info(text: str) -> str:
    if "@" not in text:
        return text
    before, *rest = text.split("://")
    pieces = [before]
    for piece in rest:
        scheme, before = before, piece
        if scheme[-1:].isalnum():
            piece = _without_password(piece, web=scheme[-5:].lower().endswith(("http", "https")))
        pieces.append(piece)
    return "://".join(pieces)


def _without_password(piece: str, *, web: bool) -> str:
    """What follows a URI's "://", up to the next one, without its password and, of http(s), without its user name."""
    if web and piece.startswith(f"{REDACTED}@"):
        return piece
    colon = _end(USER, piece, 0)
    at = _end_of_password(piece, colon, web=web)
    if at < 0:  # an @ before the colon ends a user name without a password
        at = piece.rfind("@", 0, colon)
        return REDACTED + piece[at:] if web and at >= 0 else piece
    at = piece.rfind("@", at, _end(AUTHORITY, piece, at))  # the last one before the path
    return f"{REDACTED}{piece[at:]}" if web else f"{piece[:colon]}:{REDACTED}{piece[at:]}"


def _end_of_password(piece: str, colon: int, *, web: bool) -> int:
    """Where the first @ after a password that follows this colon is; -1 where none does.

    Databases take passwords that hold slashes and, like http(s), spaces. In http(s) digits up to a slash are a port.
    """
    at = piece.find("@", colon) if piece[colon : colon + 1] == ":" else -1
    if at < 0:
        return -1
    password, is_port = piece[colon + 1 : at], PORT.match(piece, colon) is not None
    if not any(map(str.isspace, password)):
        return -1 if web and is_port else at
    first_word = password.split(maxsplit=1)[0] if password.strip() else ""
    is_prose = (
        is_port
        or password[0].isspace()
        or "\n" in password
        or first_word.rstrip(",;.:)]}").endswith(("'", '"', ">"))  # the quote that ends the URI
        or (web and any(mark in password for mark in "/?#"))
    )
    return -1 if is_prose else at


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _without_assigned_secrets(text: str) -> str:
    """The text without the values of names that mean a secret, as in `token=...` and `'password': '...'`."""
    parts, done, position = [], 0, 0
    while match := ASSIGNMENT.search(text, position):
        position = match.end()
        before = text[match.start() - 1 : match.start()]
        in_uri = before in ("?", "&")
        if not _is_secret_name(match["name"], in_uri=in_uri or before == ";"):
            continue
        if quote := match["quote"]:
            value_end = _closing_quote(text, position, quote)
        else:
            value_end = _end(VALUE_IN_URI if in_uri else VALUE, text, position)
        if value_end > position:
            parts += [text[done:position], REDACTED]
            done = position = value_end
    return "".join([*parts, text[done:]])


def _is_secret_name(name: str, *, in_uri: bool = False) -> bool:
    """Whether a value of this name is a secret; `in_uri`: of a parameter in a URI."""
    return SECRET.search(name) is not None or (in_uri and name.lower() in SHORT_SECRETS)


def _closing_quote(text: str, start: int, quote: str) -> int:
    """Where the quoted value that starts here ends: at its quote, or where the line ends, if it was cut off."""
    inside = re.compile(rf"(?:(?!{re.escape(quote)})(?:\\.|.))*+")
    return _end(inside, text, start)


def redacted_values(value: Any) -> Any:
    """A value that JSON can hold, with every text in it redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_values(key): redacted_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(item) for item in value]
    return value


def require_no_secret(text: str, what: str) -> None:
    """Raise ValueError where the text holds a secret: `what` is stored, and must be usable as it is stored."""
    if redacted(text) != text:
        raise ValueError(
            f"{what} {redacted(text)!r}: holds a password or token, which would be stored; give it by environment "
            "variables or in a credentials file instead (AWS_*, ~/.aws/credentials)"
        )


class RedactingStream:
    """A text stream that redacts each text before it writes it to another one, whose interface it has."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacting_stderr() -> Iterator[None]:
    """Redact what this process prints to stderr: messages, other libraries' logs, and the traceback of a fault.

    An exception other than SystemExit leaves it so, because the interpreter prints its traceback afterwards.
    """
    plain = sys.stderr
    sys.stderr = RedactingStream(plain)
    try:
        yield
    except SystemExit:
        sys.stderr = plain
        raise
    sys.stderr = plain
