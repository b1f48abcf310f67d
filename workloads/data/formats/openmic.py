"""OpenMIC-2018, as published: aggregated labels, of which most are unknown, and the lists of its split.

The archive `openmic-2018.npz` holds the same labels and is not read.
"""

import re
from collections import defaultdict

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import TEST, TRAIN, Metadata, MetadataRow, read_rows
from workloads.data.table import read_table
from workloads.runtime.opener import Opener

LABELS = "openmic-2018-aggregated-labels.csv"
COLUMNS = ("sample_key", "instrument", "relevance")
LISTS = {"partitions/split01_train.csv": TRAIN, "partitions/split01_test.csv": TEST}
PRESENT_FROM = 0.5  # relevance: that of an instrument that its listeners agreed to hear
KEY = re.compile(r"[0-9]{3,}_[0-9]+")  # track and start


def read_openmic(data: Data, opener: Opener) -> Metadata:
    """A clip for each sample of the split; the track that it was cut from is its source.

    Instruments from a relevance of 0.5 on are its tags, the other annotated ones are known to be absent, and those
    without a row are unknown. The test list is the test fold; a slice of the training list validates.

    Raises ValueError, with file and row, for a sample that is on both lists, or on one and has no label, or has labels
    and is on none.
    """
    fold = _folds(data, opener)
    relevance = _relevance(data, opener, fold)
    if bare := sorted(fold.keys() - relevance.keys()):
        raise ValueError(
            f"{opener.join(data.root, LABELS)}: no row for sample_key {bare[0]!r} ({len(bare)} such samples of the "
            "partitions); take the table as published, or remove them from the partitions"
        )
    clips = []
    for key, labels in relevance.items():
        tags = tuple(sorted(name for name, value in labels.items() if value >= PRESENT_FROM))
        absent = tuple(sorted(labels.keys() - set(tags)))
        path = f"audio/{key[:3]}/{key}.ogg"
        clips.append(Clip(key, path, tags, fold[key], source=key.split("_")[0], absent=absent))
    return Metadata(clips)


def _folds(data: Data, opener: Opener) -> dict[str, int]:
    """The fold of each sample of the lists, which have no header."""
    folds: dict[str, int] = {}
    for name, fold in LISTS.items():
        uri, column = opener.join(data.root, name), ("sample_key",)
        for row in read_rows(read_table(uri, opener, columns=column, header=column), uri, column, data):
            if (key := _key(row)) in folds:
                raise ValueError(f"{row.location}: sample_key {key!r} is on a list already; keep it on one")
            folds[key] = fold
    return folds


def _relevance(data: Data, opener: Opener, fold: dict[str, int]) -> dict[str, dict[str, float]]:
    """For each sample the relevance of the instruments that were annotated."""
    uri = opener.join(data.root, LABELS)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in read_rows(read_table(uri, opener, columns=COLUMNS), uri, COLUMNS, data):
        key, instrument = _key(row), row.required("instrument")
        if key not in fold:
            raise ValueError(f"{row.location}: sample_key {key!r} is in no list of partitions/; add it, or remove it")
        if instrument in found[key]:
            raise ValueError(f"{row.location}: {instrument!r} of {key!r} is in an earlier row; keep one of them")
        found[key][instrument] = row.number("relevance", low=0, high=1)
    return found


def _key(row: MetadataRow) -> str:
    key = row.required("sample_key")
    if not KEY.fullmatch(key):
        raise ValueError(f"{row.location}: sample_key = {key!r}: must be TRACK_START, such as 000046_3840")
    return key
