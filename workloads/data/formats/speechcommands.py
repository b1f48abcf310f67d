"""Speech Commands, version 2, as published: folders of words, and lists of the clips that validate and test."""

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.listing import list_files
from workloads.data.formats.rows import TEST, TRAIN, VALIDATION, Metadata
from workloads.data.table import read_table
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some

LISTS = {"validation_list.txt": VALIDATION, "testing_list.txt": TEST}
NOISE = "_background_noise_"  # a folder of long recordings, which are no clips of the set
SPEAKER_ENDS = "_nohash_"


def read_speechcommands(data: Data, opener: Opener) -> Metadata:
    """A clip for each file of a word; those on neither list train. The speaker is the source.

    A clip that is on a list is one of the set, whether its file is there or not: a missing one is quarantined later.
    Words without a folder are left out, with a warning: many people train on ten of the 35.

    Raises ValueError where a list is missing or names a path that is none of a word, and for names without a speaker.
    """
    listed = published_split(data, opener)
    found = [path for path in list_files(data, opener) if _is_clip(path)]
    if not found:
        raise ValueError(f"data.root = {data.root!r}: holds no WORD/SPEAKER_nohash_N.wav; give Speech Commands' folder")
    words = {_word(path) for path in found}
    left_out = sorted({_word(path) for path in listed} - words)
    paths = sorted({*found, *(path for path in listed if _word(path) in words)})
    clips = [
        Clip(path, path, (_word(path),), listed.get(path, TRAIN), source=_speaker(path, data.root)) for path in paths
    ]
    return Metadata(clips, val_fold=VALIDATION, warnings=_without_folder(left_out, data))


def published_split(data: Data, opener: Opener) -> dict[str, int]:
    """The fold of each path on the two lists; ValueError where one is missing or names what is no clip of a word."""
    return {path: fold for name, fold in LISTS.items() for path in _listed(name, data, opener)}


def _listed(name: str, data: Data, opener: Opener) -> list[str]:
    """The paths on a list."""
    uri, paths = opener.join(data.root, name), []
    for number, cells in enumerate(read_table(uri, opener, columns=("path",), header=("path",)), start=1):
        if not _is_clip(cells["path"]):
            raise ValueError(
                f"{uri}, row {number}: {cells['path']!r}: must be a path such as bed/0c40e715_nohash_0.wav"
            )
        paths.append(cells["path"])
    return paths


def _is_clip(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 2 and parts[0] not in ("..", NOISE) and path.endswith(".wav")


def _word(path: str) -> str:
    return path.split("/")[0]


def _speaker(path: str, root: str) -> str:
    speaker, ends, _ = path.split("/")[1].partition(SPEAKER_ENDS)
    if not ends:
        raise ValueError(
            f"data.root = {root!r}: the name of {path} has no speaker before {SPEAKER_ENDS}; remove the file, or take "
            "the folders as they are with data.format = 'folders'"
        )
    return speaker


def _without_folder(words: list[str], data: Data) -> tuple[str, ...]:
    if not words:
        return ()
    return (
        f"data.root = {data.root!r}: {len(words)} words of the lists have no folder ({name_some(words, 5)}) and are "
        "left out",
    )
