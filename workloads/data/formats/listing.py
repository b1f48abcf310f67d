"""The audio files below a data set's root, found by listing it. Opens none of them."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from workloads.config.data import Data
from workloads.data.table import NoSuchTable
from workloads.runtime.opener import Opener, unreadable
from workloads.runtime.text import name_some

# What libsndfile and minimp3 read, by the endings that such files have; files with others are never opened.
PLAIN_ENDINGS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
)
# What the optional package av reads (`containers.py`), without films (.mp4, .mkv): beside one often lies its sound.
CONTAINER_ENDINGS = (".m4a", ".m4b", ".webm", ".weba", ".mka", ".aac", ".amr", ".wma")


def list_files(data: Data, opener: Opener) -> list[str]:
    """The paths of all files below data.root, relative to it and sorted, without hidden files and folders.

    Raises ValueError where the root cannot be listed, or where a path is not text that could be printed and stored.
    """
    try:
        paths = opener.files_below(data.root)
    except OSError as error:
        kind = NoSuchTable if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"data.root = {data.root!r}: {unreadable(error)}; give the data set's folder: --set data.root=DIR"
        ) from None
    visible = [path for path in paths if not any(map(is_hidden, path.split("/")))]
    for path in visible:
        if not (path.isprintable() or _is_text(path)):
            shown = ascii(path)  # a name that is not in UTF-8 holds surrogates
            raise ValueError(
                f"data.root = {data.root!r}: the file name {shown} is not in UTF-8 or holds a control character; "
                "rename the file or its folder"
            )
    return visible


def _is_text(path: str) -> bool:
    """Whether a path holds neither control characters nor surrogates; blanks that are not printable are text."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in path)


def is_hidden(name: str) -> bool:
    """Whether people do not see a file or folder of this name: .DS_Store, and the folder of a Mac's archive."""
    return name.startswith(".") or name == "__MACOSX"


def is_audio(path: str) -> bool:
    """Whether a file's ending is that of a sound that can be decoded, maybe by the optional package av only."""
    return path.lower().endswith(PLAIN_ENDINGS + CONTAINER_ENDINGS)


def needs_av(path: str) -> bool:
    """Whether a sound's ending is one that only the optional package av reads."""
    return path.lower().endswith(CONTAINER_ENDINGS)


def left_out(others: Sequence[str], data: Data) -> tuple[str, ...]:
    """The warning about files that are no audio by their endings; none where there are none."""
    if not others:
        return ()
    endings = Counter(PurePosixPath(path).suffix.lower() or "none" for path in others)
    counts = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(5))
    return (
        f"data.root = {data.root!r}: {len(others)} files are left out because of their endings, {counts}: "
        f"{name_some(others, 3)}; convert those that are audio to wav or flac",
    )
