"""UrbanSound8K, as published: `metadata/UrbanSound8K.csv` and `audio/foldN/`, ten folds."""

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import Metadata, MetadataRow, read_clips
from workloads.data.table import read_table
from workloads.runtime.opener import Opener

COLUMNS = ("slice_file_name", "fsID", "fold", "class")


def read_urbansound8k(data: Data, opener: Opener) -> Metadata:
    """A clip for each slice; the Freesound recording that it was cut from is its source."""

    def to_clip(row: MetadataRow) -> Clip:
        name, fold = row.required("slice_file_name"), row.fold()
        path = row.path("slice_file_name", data, below=f"audio/fold{fold}/")
        return Clip(name.rsplit(".", 1)[0], path, row.tags("class"), fold, row.required("fsID"))

    uri = opener.join(data.root, "metadata/UrbanSound8K.csv")
    return Metadata(read_clips(read_table(uri, opener, columns=COLUMNS), uri, data, COLUMNS, to_clip))
