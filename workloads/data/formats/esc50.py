"""ESC-50, as published: `meta/esc50.csv` and `audio/`."""

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import Metadata, MetadataRow, read_clips
from workloads.data.table import read_table
from workloads.runtime.opener import Opener


def read_esc50(data: Data, opener: Opener) -> Metadata:
    """ESC-50's layout: `meta/esc50.csv` and `audio/`. Its target numbers may have gaps, so the category is the tag."""

    def to_clip(row: MetadataRow) -> Clip:
        name = row.required("filename")
        clip_id, fold = name.rsplit(".", 1)[0], row.fold()
        path = row.path("filename", data, below="audio/")
        return Clip(clip_id, path, row.tags("category"), fold, row.required("src_file"))

    uri = opener.join(data.root, "meta/esc50.csv")
    columns = ("filename", "fold", "category", "src_file")
    return Metadata(read_clips(read_table(uri, opener, columns=columns), uri, data, columns, to_clip))
