"""Tables in a folder that say something of its sounds: which column names the file, and what the other columns say."""

import ast
import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.scaffold.parts import FOLD_COLUMNS, SOURCE_COLUMNS, TAG_COLUMNS, Part
from workloads.data.formats.listing import is_audio
from workloads.data.table import MAX_BYTES, Row, parse_csv
from workloads.runtime.text import decode_text, name_some

ENDINGS = (".csv", ".tsv", ".txt")
SEPARATORS = (",", ";", "\t", "|")
MOST_TABLES = 40  # the ones highest in the folder: transcripts beside each sound are no tables
MATCHED = 0.5  # share of the rows that must name a sound
LEAST_COVERED = 0.1  # rows that must do so, as a share of the sounds
LIST = re.compile(r"\[.*\]", re.DOTALL)
NO_COMMA = re.compile(r"['\"]\s+['\"]")  # NumPy's way to print a list, which Python reads as one text
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


@dataclass(frozen=True)
class Table:
    """A table that names sounds: what each column says of them."""

    file: str
    parts: tuple[Part, ...]
    covered: int  # sounds that it names
    missing: int  # rows whose file is not there


def find_tables(root: str, others: Sequence[str], paths: Sequence[str]) -> tuple[list[Table], list[str]]:
    """The tables that name sounds, the one that covers most first, and what is wrong with files that may be tables.

    Raises ValueError where a table names files by a name that several have, or has no header.
    """
    texts = [path for path in others if path.lower().endswith(ENDINGS)]
    texts.sort(key=lambda path: (path.lower().endswith(".txt"), path.count("/"), path))
    lookup, found, problems = _Lookup(paths), [], []
    for path in texts[:MOST_TABLES]:
        try:
            table = _table(path, _rows(Path(root) / path, path), lookup, len(paths))
        except _Meant as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            problems.append(str(error))
        else:
            found += [table] if table else []
    return sorted(found, key=lambda table: -table.covered), problems


class _Meant(ValueError):
    """A mistake in a table that certainly names sounds, so that the folders are not taken in its place."""


def _rows(file: Path, name: str) -> list[Row]:
    """The rows of a CSV file with whatever separator its header has; none where it has one column."""
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{name}: larger than {MAX_BYTES / 2**30:g} GiB; is it a table of clips?")
    content = file.read_bytes()
    first = decode_text(content, str(file)).lstrip().partition("\n")[0]
    cells = {mark: len(next(csv.reader([first], delimiter=mark), [])) for mark in SEPARATORS}
    separator = max(SEPARATORS, key=lambda mark: cells[mark])
    if cells[separator] < 2:
        return []
    return list(parse_csv(content, str(file), separator=separator))


def _table(file: str, rows: list[Row], lookup: "_Lookup", num_paths: int) -> Table | None:
    """None where no column names sounds; ValueError for names that several sounds have, and without a header."""
    if not rows:
        return None
    folder = PurePosixPath(file).parent.as_posix()
    columns = {column: [lookup.find(row[column], folder) for row in rows] for column in rows[0]}
    column, found = max(columns.items(), key=lambda item: len({path for paths in item[1] for path in paths}))
    if sum(map(bool, found)) < max(MATCHED * len(rows), LEAST_COVERED * num_paths):
        return None  # about something else; a number may be the name of a file by chance
    if is_audio(column):
        raise _Meant(f"{file}: its first line names the sound {column!r}; put a line before it, such as path,tags")
    if several := [row[column] for row, paths in zip(rows, found, strict=True) if len(paths) > 1]:
        places = name_some(next(paths for paths in found if len(paths) > 1), 3)
        by_chance = not any(map(is_audio, several))  # the number of a class may be the name of a file
        raise (ValueError if by_chance else _Meant)(
            f"{file}: column {column} names {several[0]!r}, which may be any of {places}; write paths that begin "
            "at the folder you give, with their endings"
        )
    matched = [(paths[0], row) for row, paths in zip(rows, found, strict=True) if paths]
    parts = [_part(file, name, matched) for name in rows[0] if name and name != column]
    return Table(file, tuple(_with_one_hot(file, parts)), len({path for path, _ in matched}), len(rows) - len(matched))


def _part(file: str, column: str, matched: list[tuple[str, Row]]) -> Part:
    """What a column says of each sound; of one with several rows, or with lists in its cells, all that they say."""
    values: dict[str, list[str]] = defaultdict(list)
    cells = [unicodedata.normalize("NFC", row[column].strip()) for _, row in matched]
    for (path, _), texts in zip(matched, _listed(cells) or [[cell] for cell in cells], strict=True):
        values[path] += [text for text in dict.fromkeys(texts) if text not in values[path]]
    joined = any(len(texts) > 1 for texts in values.values())
    said = {path: ";".join(filter(None, texts)) for path, texts in values.items()}
    return Part(f"column:{column}", f"column {column} of {file}", said, joined)


def _listed(cells: Sequence[str]) -> list[list[str]] | None:
    """The items of cells that are lists as Python and JSON write them: ['dog', 'rain']; None where others are there."""
    if not all(LIST.fullmatch(cell) and not NO_COMMA.search(cell) for cell in cells if cell):
        return None
    try:
        items = [ast.literal_eval(cell) if cell else [] for cell in cells]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not any(items) or not all(isinstance(item, str | int) for found in items for item in found):
        return None
    return [[str(item).strip() for item in found] for found in items]


def _with_one_hot(file: str, parts: Sequence[Part]) -> list[Part]:
    """The parts, of which those with yes and no are one: a column for each tag. Unchanged where there are not two."""
    hot = [part for part in parts if _is_yes_or_no(part)]
    if len(hot) < 2:
        return [*parts]
    tags: dict[str, list[str]] = {path: [] for path in hot[0].values}
    for part in hot:
        for path, text in part.values.items():
            if text.lower() in YES:
                tags[path].append(part.key.removeprefix("column:"))
    values = {path: ";".join(names) for path, names in tags.items()}
    joined = Part("columns", f"the {len(hot)} columns of {file} with yes and no", values, joined=True)
    return [*(part for part in parts if part not in hot), joined]


def _is_yes_or_no(part: Part) -> bool:
    """Whether a column may be that of a tag: of those whose name says what they are a 0 and a 1 are something else."""
    named = part.column in (*FOLD_COLUMNS, *SOURCE_COLUMNS, *TAG_COLUMNS)
    return not named and len(part.counts) > 1 and {text.lower() for text in part.counts} <= {*YES, *NO}


class _Lookup:
    """Finds the sound that a cell names: by its path, the end of it, or its name, with or without the ending."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._by_path = {_alike(path): path for path in paths}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            name = _alike(PurePosixPath(path).name)
            for key in {name, name.rpartition(".")[0]}:
                self._by_name[key].append(path)

    def find(self, cell: str, folder: str) -> list[str]:
        """The sounds that a cell may mean: one, none, or several of the same name in different folders."""
        text = _alike(cell.strip().replace("\\", "/").removeprefix("./"))
        if not text:
            return []
        for whole in (text, _alike(f"{folder}/{cell.strip()}")):
            if whole in self._by_path:
                return [self._by_path[whole]]
        *_, name = text.split("/")
        found = self._by_name.get(name, [])
        closer = [path for path in found if _end_alike(path, text)] if len(found) > 1 else found
        return closer or found


def _end_alike(path: str, text: str) -> bool:
    """Whether a path ends as a cell does, with or without its ending."""
    full = f"/{_alike(path)}"
    return full.endswith(f"/{text}") or full.rpartition(".")[0].endswith(f"/{text}")


def _alike(path: str) -> str:
    """A path as it is compared: Macs part letters from their accents, Windows ignores capitals."""
    return unicodedata.normalize("NFC", path).casefold()
