"""Secrets within texts: recognised, and replaced before a text is stored or printed. Does not depend on who writes it.

Everything that this project writes passes here: JSON through `json_files.json_text`, pages and cards through their
templates, logs and messages through `RedactingStream`. What a URI may hold is a user name with a password, or a
parameter such as `?token=` or `X-Amz-Signature=`; error messages of other libraries quote URIs whole or in part.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

REDACTED = "***"
# In http(s) a colon and digits up to a slash are a port; databases take passwords like that. The last @ before the path
# ends the password, which may hold others.
USER_INFO = re.compile(
    r"""(?<![a-z0-9+.-])(?P<scheme>(?>(?P<web>[a-z0-9+.-]*https?://)|[a-z][a-z0-9+.-]*://))
        (?P<user>[^\s/?#:@"<>\[]*)
        (?P<password>:(?(web)(?!\d+(?:[/?#\s"'<>]|$)))[^\s@]*(?:@[^\s/?#@]*)*)?@""",
    re.IGNORECASE | re.VERBOSE,
)
PARAMETER = re.compile(
    r"""(?P<name>(?<![\w.-])[\w.-]*
        (?:passw(?:or)?d|pwd|secret|token|signature|credential|api[_-]?key|access[_-]?key)[\w.-]*
        |(?<=[?&;])(?:sig|auth|key|pass))
        =(?!\*\*\*)(?P<value>'[^']*'|"[^"]*"|[^\s&#"<>]*[^\s&#"'<>])""",
    re.IGNORECASE | re.VERBOSE,
)


def redacted(text: str) -> str:
    """The text with every secret in it replaced by ***; a text without one, or redacted before, is returned unchanged.

    Of http(s) URIs the user name is replaced too: many services take a token there. Of others it stays.
    """
    if "@" in text:
        text = USER_INFO.sub(_without_password, text)
    if "=" in text:
        text = PARAMETER.sub(rf"\g<name>={REDACTED}", text)
    return text


def _without_password(match: re.Match[str]) -> str:
    if match["web"]:
        return f"{match['scheme']}{REDACTED}@"
    return match[0] if match["password"] is None else f"{match['scheme']}{match['user']}:{REDACTED}@"


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
