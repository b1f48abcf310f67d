"""FSD50K, as published: `FSD50K.ground_truth/dev.csv` and `eval.csv`, and a folder of audio for each.

The vocabulary is not read: every tag of it is on clips of both tables.
"""

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import TEST, TRAIN, VALIDATION, Metadata, MetadataRow, read_clips
from workloads.data.table import read_table
from workloads.runtime.opener import Opener

SPLITS = {"train": TRAIN, "val": VALIDATION}


def read_fsd50k(data: Data, opener: Opener) -> Metadata:
    """The development clips, split as their table says, and the evaluation clips, which are the test fold.

    The tables name no uploader. A clip is its own source: the published split keeps uploaders apart.
    """

    def read(part: str, columns: tuple[str, ...]) -> list[Clip]:
        def to_clip(row: MetadataRow) -> Clip:
            clip_id = row.required("fname")
            path = row.path("fname", data, below=f"FSD50K.{part}_audio/", ending=".wav")
            fold = row.choice("split", SPLITS) if "split" in columns else TEST
            return Clip(clip_id, path, row.tags("labels", ","), fold, source=clip_id)

        uri = opener.join(data.root, f"FSD50K.ground_truth/{part}.csv")
        return read_clips(read_table(uri, opener, columns=columns), uri, data, columns, to_clip)

    clips = [*read("dev", ("fname", "labels", "split")), *read("eval", ("fname", "labels"))]
    return Metadata(clips, val_fold=VALIDATION)
