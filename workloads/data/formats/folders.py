"""Folders named after tags: `TAG/FILE` below the root, one tag a clip, no table."""

from collections.abc import Sequence

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.listing import is_audio, left_out, list_files
from workloads.data.formats.rows import FOLDS, Metadata, assign_fold
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some

DEPTH = 2  # parts of the path of a clip: its tag, its file


def read_folders(data: Data, opener: Opener) -> Metadata:
    """A clip for each audio file directly in a folder of the root, whose name is its tag.

    A clip's id is its path; each is its own source, and gets a fold by its name. Hidden and empty folders are no tags.

    Raises ValueError where there is no such file, and for audio beside the tags' folders or deeper below them: it has
    no tag, or its tag is not clear.
    """
    files = list_files(data, opener)
    audio = [path for path in files if is_audio(path)]
    if not audio:
        raise ValueError(
            f"data.root = {data.root!r}: holds no audio; format folders needs files such as TAG/FILE.wav in it"
        )
    if misplaced := [path for path in audio if path.count("/") + 1 != DEPTH]:
        raise ValueError(_where_they_belong(misplaced, audio, data))
    clips = [Clip(path, path, (path.split("/")[0],), assign_fold(path), source=path) for path in audio]
    return Metadata(clips, warnings=(_without_sources(data), *left_out([p for p in files if not is_audio(p)], data)))


def _where_they_belong(misplaced: Sequence[str], audio: Sequence[str], data: Data) -> str:
    """The message about audio that is not at TAG/FILE; the root is wrong where all of it lies deeper or beside."""
    what = f"data.root = {data.root!r}: {len(misplaced)} of {len(audio)} audio files are not at TAG/FILE"
    fix = "move or remove them, or name their tags in a manifest (data.format = 'manifest')"
    if len(misplaced) == len(audio):
        fix = "give the folder that holds the tags' folders: --set data.root=DIR"
    return f"{what} ({name_some(misplaced, 3)}), so they have no clear tag; {fix}"


def _without_sources(data: Data) -> str:
    return (
        f"data.format = 'folders': each file is taken for a recording of its own and gets a fold from 1 to {FOLDS} by "
        f"a hash of its name, and fold {data.test_fold} is the test set; if several files are of one recording or "
        "speaker, scores are too good: name it in the column source of a manifest (data.format = 'manifest')"
    )
