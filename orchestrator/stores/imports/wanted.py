"""Which clips an import is wanted of: those of a table, or of a data set. Opens no audio."""

from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.data import Data
from workloads.data.manifest import read_dataset
from workloads.data.table import read_table

COLUMN = "clip_id"


def is_table(file: str) -> bool:
    """Whether it is a table of clips, by its ending; else the recipe of a data set."""
    return file.endswith((".csv", ".parquet"))


def clips_of_table(file: str) -> set[str]:
    """The names in the column clip_id of a CSV or Parquet file, a manifest for example; ValueError without one."""
    found = set[str]()
    for row in read_table(file, FsspecFiles(), columns=(COLUMN,)):
        if not row.get(COLUMN):
            raise ValueError(f"--clips {file!r}: a row without {COLUMN}; its columns are {', '.join(row)}")
        found.add(row[COLUMN])
    return found


def clips_of_data(data: Data) -> set[str]:
    """The names of all clips of a data set, of every fold."""
    return {clip.clip_id for clip in read_dataset(data, FsspecFiles(), tags_needed="never").clips}
