"""The table that `antiphon evaluate --out` writes: one row for each clip, one column of probability for each tag.

Does not depend on models: it gets probabilities.
Axes: N clips, C tags.
"""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import retry_while_unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.data.clips import Clip

CLIP_COLUMNS = ("clip_id", "source", "fold", "true_tags")
FORMATS = (".csv", ".parquet")
PATIENCE_S = 300.0  # the scoring before may have taken hours


def check_out(out: str, formats: tuple[str, ...] = FORMATS) -> None:
    """Raise ValueError for another ending, a folder that does not exist, and a file that does; before any scoring."""
    if PurePath(out).suffix not in formats:
        raise ValueError(f"--out {out!r}: must end in {' or '.join(formats)}")
    if object_store.exists(out):
        raise ValueError(f"--out {out!r}: exists already; choose another name or remove it")
    if not object_store.is_local(out):
        return
    folder = object_store.local_path(out).parent
    if not folder.is_dir():
        raise ValueError(f"--out {out!r}: there is no folder {folder}; create it first")
    if Path(out.removeprefix("file://")).expanduser().is_symlink():
        raise ValueError(f"--out {out!r}: is a link to a file that does not exist; name the file itself")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {out!r}: the folder {folder} cannot be written; choose another one")


def write_predictions(out: str, clips: Sequence["Clip"], p_NC: "Tensor", tags: Sequence[str]) -> None:
    """Write the table to a path or URI that `check_out` has passed (`store_new_file`)."""
    columns: dict[str, Sequence[Any]] = {
        "clip_id": [clip.clip_id for clip in clips],
        "source": [clip.source for clip in clips],
        "fold": [clip.fold for clip in clips],
        "true_tags": [";".join(clip.tags) for clip in clips],
        **{tag_column(tag): p_N.numpy() for tag, p_N in zip(tags, p_NC.T, strict=True)},
    }
    store_new_file(out, _csv(columns) if PurePath(out).suffix == ".csv" else _parquet(columns))


def store_new_file(out: str, content: bytes) -> None:
    """Write a file that `check_out` has passed; it appears complete or not at all.

    Raises ValueError where another process has created it meanwhile.
    """
    created = retry_while_unavailable(
        lambda: object_store.create_exclusively(out, content), what=out, patience_s=PATIENCE_S
    )
    # After a lost answer the next attempt finds the file of the one before.
    if not created and _read(out) != content:
        raise ValueError(f"--out {out!r}: exists already; choose another name or remove it")


def tag_column(tag: str) -> str:
    """The column of a tag's probabilities: its name, marked where the table has another column of that name."""
    return tag if tag.removeprefix("tag:") not in CLIP_COLUMNS else f"tag:{tag}"


def _read(uri: str) -> bytes:
    with FsspecFiles().open(uri) as file:
        return file.read()


def _csv(columns: dict[str, Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    rows.writerows(zip(*(getattr(column, "tolist", lambda c=column: c)() for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _parquet(columns: dict[str, Sequence[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
    return file.getvalue()
