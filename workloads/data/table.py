"""Tables that people wrote, CSV or Parquet, row by row. A damaged one is refused, not guessed at.

Does not depend on what the columns mean.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from workloads.runtime.opener import Opener, read_bounded
from workloads.runtime.text import decode_text

NOT_IN_CELLS = re.compile("[\n\r\0]")
MAX_BYTES = 2**31  # of a table's file
Row = dict[str, str]  # a cell is empty where its value is missing


class NoSuchTable(ValueError):
    """The file of the table does not exist, or the folder of a data set without one."""


def read_table(
    uri: str,
    opener: Opener,
    *,
    columns: Sequence[str],
    header: Sequence[str] | None = None,
    setting: str = "data.manifest",
) -> Iterator[Row]:
    """The rows of the table at `uri`: of Parquet only these columns, as far as they exist.

    With `header` the file is CSV without one, whatever its ending: see `parse_csv`. `setting` names it in messages.

    Raises ValueError, with the place and the fix, for a file that cannot be read, has another ending, or is damaged.
    """
    if header or uri.endswith(".csv"):
        return parse_csv(_read_file(uri, opener), uri, header=header)
    if uri.endswith(".tsv"):
        return parse_csv(_read_file(uri, opener), uri, separator="\t")
    if uri.endswith(".parquet"):
        return _parse_parquet(_read_file(uri, opener), uri, columns)
    raise ValueError(f"{setting} = {uri!r}: must end in .csv, .tsv or .parquet")


def _read_file(uri: str, opener: Opener) -> bytes:
    try:
        with opener.open(uri) as file:
            content = read_bounded(file, MAX_BYTES)
    except FileNotFoundError:
        raise NoSuchTable(f"{uri}: no such file; check data.root and data.manifest") from None
    except OSError as error:
        raise ValueError(f"{uri}: cannot be read ({error}); check the address and the credentials") from None
    if content is None:
        raise ValueError(f"{uri}: larger than {MAX_BYTES / 2**30:g} GiB; is it a table of clips?")
    return content


def parse_csv(content: bytes, name: str, *, header: Sequence[str] | None = None, separator: str = ",") -> Iterator[Row]:
    """The rows of a CSV file with a header, in UTF-8, separated by commas or tabs; blank lines are skipped.

    `header` are the columns of a file that does not name them: lines that begin with # are comments then, and spaces
    after commas are left out, as in AudioSet's files.

    Every row has as many cells as the header, and no cell a line break: a surplus cell is an unquoted comma, and a
    quote that is not closed swallows the rows after it.
    """
    text, given = io.StringIO(decode_text(content, name), newline=""), header is not None
    reader = csv.reader(text, strict=True, skipinitialspace=given, delimiter=separator)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{name}, line {line}: {error}; check its quotes") from None
        if cells is None:
            return
        if not cells or (given and cells[0].startswith("#")):
            continue
        if any("\n" in cell or "\r" in cell for cell in cells):
            raise ValueError(f"{name}, line {line}: a cell goes on to line {reader.line_num}: close its quote")
        if any("\0" in cell for cell in cells):
            raise ValueError(f"{name}, line {line}: a cell holds a zero byte; remove it")
        if header is None:
            header = _checked_header(cells, name)
        elif len(cells) != len(header):
            raise ValueError(
                f"{name}, line {line}: {len(cells)} cells, the header has {len(header)}; put quotes around a cell that "
                "holds a comma, and write every cell, also an empty one"
            )
        else:
            yield dict(zip(header, cells, strict=True))


def _checked_header(names: list[str], file: str) -> list[str]:
    names = [name.strip() for name in names]
    if names[0].startswith("#"):
        raise ValueError(f"{file}: begins with a comment ({names[0][:40]!r}); its first line must name the columns")
    if len(names) == 1 and ";" in names[0]:
        raise ValueError(f"{file}: its cells are separated by semicolons; separate them by commas")
    if doubled := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"{file}: column {doubled[0]!r} is there twice; give every column its own name")
    return names


def _parse_parquet(content: bytes, name: str, columns: Sequence[str]) -> Iterator[Row]:
    """The same as from a CSV file: text, lists joined by semicolons; read in batches, of which one is in memory."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        present = _checked_header(list(file.schema_arrow.names), name)
        wanted = [column for column in columns if column in present]
        if not wanted:  # the caller says which ones are missing, of those that are there
            yield from [dict.fromkeys(present, "")] * min(1, file.metadata.num_rows)
            return
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield {column: _text(cell, f"{name}: column {column}") for column, cell in row.items()}
    except pyarrow.ArrowException as error:
        raise ValueError(f"{name}: no readable Parquet file ({' '.join(str(error).split())[:200]})") from None


def _text(cell: object, place: str) -> str:
    """A cell as CSV would hold it; a missing value, or one that is no number, is empty. ValueError for other types."""
    if isinstance(cell, list):
        return ";".join(filter(None, (_text(value, place) for value in cell)))
    if cell is None or cell != cell:  # NaN is how pandas writes a gap
        return ""
    if isinstance(cell, bytes | dict):
        kind = "bytes" if isinstance(cell, bytes) else "records"
        raise ValueError(f"{place} holds {kind}; write text, numbers, or lists of text")
    text = str(cell)
    if NOT_IN_CELLS.search(text):  # as in CSV
        raise ValueError(f"{place} holds a line break or a zero byte ({text[:40]!r}); remove it")
    return text
