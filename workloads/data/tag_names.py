"""The names of outputs in their order, as published weights and published outputs of teachers need them.

AudioSet's 527 tags, in audioset_tags.txt, are the display names of class_labels_indices.csv of AudioSet (Google; its
ontology is under CC BY 4.0), in the order of their index, as EfficientAT, CED and AST carry it. Opens no other file.
"""

from importlib import resources

from workloads.data.table import parse_csv
from workloads.runtime.text import decode_text

AUDIOSET = 527


def tag_names(count: int | None, what: str, *, file: str = "", content: bytes = b"") -> tuple[str, ...]:
    """The tags in the content of `file`, one a line or the column display_name of a CSV file; without, AudioSet's 527.

    `what` has `count` outputs, for messages; None: it is not known how many. Raises ValueError for another number of
    tags, for none, and for one that is there twice.
    """
    if not file and count not in (None, AUDIOSET):
        raise ValueError(f"{what} have {count} classes; name them with --tags FILE, one tag per line")
    if not file:
        return _audioset()
    if file.endswith(".csv"):
        tags = _column(content, file)
    else:
        tags = [line.strip() for line in decode_text(content, file).splitlines() if line.strip()]
    if not tags or len(tags) != (count or len(tags)):
        raise ValueError(
            f"--tags {file!r}: lists {len(tags)} tags, {what} have {count or 'some'} classes; give one tag per class"
        )
    if len(set(tags)) < len(tags):
        twice = next(tag for number, tag in enumerate(tags) if tag in tags[:number])
        raise ValueError(f"--tags {file!r}: {twice!r} is listed twice; give every class another name")
    return tuple(tags)


def with_whole_names(tags: tuple[str, ...]) -> tuple[str, ...]:
    """AudioSet's names where `tags` are these cut at their first comma, as in CED's hub folders; else `tags`.

    Cut, some are there twice: "Inside, small room" and "Inside, public space".
    """
    whole = _audioset()
    is_cut = len(tags) == AUDIOSET and all(
        tag.strip() in (name, name.split(",")[0]) for tag, name in zip(tags, whole, strict=True)
    )
    return whole if is_cut else tags


def _audioset() -> tuple[str, ...]:
    return tuple((resources.files("workloads.data") / "audioset_tags.txt").read_text().splitlines())


def _column(content: bytes, file: str) -> list[str]:
    rows = list(parse_csv(content, file))
    if not rows or "display_name" not in rows[0]:
        raise ValueError(f"--tags {file!r}: a CSV file needs a column display_name, in the order of the classes")
    if "index" in rows[0] and [row["index"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(f"--tags {file!r}: its column index must count the rows from 0")
    return [row["display_name"] for row in rows]
