"""How many clips may be unusable before a data set is refused, and what to do then. Opens no audio."""

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from workloads.config.data import Data
from workloads.data.cache import QuarantinedClip
from workloads.runtime.opener import NOT_FOUND, Opener


def check_quarantined_share(quarantined: Sequence[QuarantinedClip], total: int, data: Data, opener: Opener) -> None:
    """Raise ValueError, with reasons and fix, if more than `data.max_broken_share` of all clips are quarantined.

    Where most clips are not found, the message says where the first one was looked for: the root is wrong then.
    """
    share = len(quarantined) / total
    if share <= data.max_broken_share:
        return
    missing = [clip for clip in quarantined if clip.reason == NOT_FOUND]
    if len(missing) > total / 2:
        raise ValueError(_not_found(missing, total, data, opener))
    reasons = "; ".join(f"{clip.path}: {clip.reason}" for clip in quarantined[:3])
    enough = math.ceil(100 * share) / 100
    allow = f", or accept that with --set data.max_broken_share={enough:g}" if enough < 1 else ""
    raise ValueError(
        f"{len(quarantined)} of {total} clips ({share:.1%}) are broken, above data.max_broken_share = "
        f"{data.max_broken_share:.1%}: {reasons}. Repair or remove them{allow}"
    )


def _not_found(missing: Sequence[QuarantinedClip], total: int, data: Data, opener: Opener) -> str:
    path = missing[0].path
    first = _full(opener.join(data.root, path))
    return (
        f"{len(missing)} of {total} clips are not found; the first was looked for at {first}. "
        f"Paths are relative to data.root = {data.root!r} ({_full(data.root or '.')}); "
        f"{_fix(path, data, opener)}"
    )


def _fix(path: str, data: Data, opener: Opener) -> str:
    """The root below which the file is, if that is the table's folder or the one above the root; else the rule."""
    folders = [os.path.dirname(data.manifest) or ".", os.path.dirname(data.root.rstrip("/")) or "."]
    for root in folders:
        try:
            opener.identity(opener.join(root, path))
        except OSError:
            continue
        return f"it is there with --set data.root={shlex.quote(root)}"
    return f"give the folder that holds {PurePosixPath(path).parts[0]!r}: --set data.root=DIR"


def _full(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))
