"""Clips that no file holds: which files they are computed from, and their sounds (`COMPUTED` formats)."""

from workloads.config.data import COMPUTED, Data
from workloads.data.clips import Clip
from workloads.data.decode import Sound
from workloads.data.keywords import NoisyKeyword, render_keyword
from workloads.data.synthetic import render
from workloads.runtime.opener import Opener


def files_of(clip: Clip, data: Data, opener: Opener) -> list[str]:
    """The URIs of the files that a clip's sound depends on: its own, or those that it is computed from."""
    paths = [clip.path]
    if data.format in COMPUTED:
        paths = NoisyKeyword.from_path(clip.path).files if data.format == "keywords" else []
    return [opener.join(data.root, path) for path in paths]


def compute(clip: Clip, data: Data, rate: int, opener: Opener) -> Sound:
    """The sound of a computed clip at `rate` Hz; raises BrokenClip and OSError as `load_sound`."""
    if data.format == "keywords":
        return Sound(render_keyword(clip.path, rate, opener=opener, root=data.root), rate)
    return Sound(render(clip.clip_id, data, rate), rate)
