"""Text that people wrote: files decoded, or refused with the way to convert them; lists of names cut short.

Does not depend on what they hold.
"""

import codecs
import shlex
from collections.abc import Sequence

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def name_some(names: Sequence[str], most: int = 10) -> str:
    """The names, or the first `most` of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def decode_text(content: bytes, name: str) -> str:
    """The text of a UTF-8 file, without a byte order mark; ValueError names the file, its encoding and a conversion."""
    if b"\0" in content[:1000] and not content.startswith(UTF_16):  # decodes as UTF-8, and no column has its name
        raise ValueError(
            f"{name}: holds zero bytes, so it is no text or in UTF-16 without a byte order mark; save it as UTF-8, for "
            f"example: iconv -f UTF-16LE -t UTF-8 {shlex.quote(name)} > NEW"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if content.startswith(UTF_16) else "CP1252"
        if b"\r" in content and b"\n" not in content:  # line ends of Mac OS 9
            encoding = "MACINTOSH"
        what = "is in UTF-16" if encoding == "UTF-16" else f"is not in UTF-8 (byte 0x{content[error.start]:02x}"
        line = len(content[: error.start + 1].splitlines())
        where = "" if encoding == "UTF-16" else f" in line {line})"
        convert = f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > NEW"
        raise ValueError(f"{name}: {what}{where}; save it as UTF-8, for example: {convert}") from None


def one_line(error: BaseException) -> str:
    """An error in one line; of Ray's errors, which carry a worker's whole traceback, the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines) if len(lines) <= 3 else lines[-1].strip()
