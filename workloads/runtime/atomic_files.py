"""Files that appear under their name complete or not at all; the one way to replace a file that others may read.

Folders may be shared with users who are not trusted: one of them could put a link under a name that is known before,
and have another user's file overwritten. So what is written first has a random name and is created exclusively.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".part"  # ending of what a killed process leaves


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, open for writing bytes; it replaces `path`, or a link there, when the context ends.

    Readers, and the next process after a kill, find the old content or the new. An exception leaves the old content, a
    kill also a file ending in `UNFINISHED`. The file has the permissions that the user's umask gives. ValueError where
    a folder has the name.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, where a file of this name is to be written; move it away")
    temporary = path.with_name(f".{secrets.token_hex(16)}{UNFINISHED}")
    try:
        with temporary.open("xb") as file:  # x: raises where the name exists, also as a link
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_folder_for(path: Path, name: str) -> None:
    """ValueError where no file can be at `path`, which the user gave as `name`; to ask before anything is computed."""
    if path.is_dir():
        raise ValueError(f"{name} {str(path)!r}: is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{name} {str(path)!r}: there is no folder {path.parent}; create it first")


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or replace it."""
    with replacing(path) as file:
        file.write(content)


def replace_text(path: Path, text: str) -> None:
    """Write a whole file in UTF-8, or replace it."""
    replace_bytes(path, text.encode())
