"""The formats of published outputs: how they are opened, and what a store says of a teacher that others have run."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.stores.imports.ced import open_ced
from orchestrator.stores.imports.efficientat import open_efficientat
from orchestrator.stores.imports.pretrainedsed import open_dcase24, open_pretrainedsed
from orchestrator.stores.imports.source import NAMES, ImportRequest, Source
from workloads.config.data import MAX_CLIP_SECONDS
from workloads.config.recipe import FRONT_ENDS, MODEL_NAME
from workloads.runtime.checkpoint import file_digest
from workloads.runtime.json_files import MAX_RATE
from workloads.stores.description import DRAWN_ELSEWHERE, MAX_TAGS, About

WAVEFORM = "waveform"


@dataclass(frozen=True)
class Format:
    """How a project's files are opened, and what it published of its teacher's input."""

    open: Callable[[ImportRequest, Path, Path | None], AbstractContextManager[Source]]
    front_end: str
    rate: int
    clip_seconds: float = 10.0


FORMATS = {
    "efficientat": Format(open_efficientat, "efficientat128", 32_000),
    "ced": Format(open_ced, "ced64", 16_000),
    "dcase24": Format(open_dcase24, WAVEFORM, 16_000),
    "pretrainedsed": Format(open_pretrainedsed, WAVEFORM, 16_000),  # of five models, each with a front end of its own
}


def check_request(request: ImportRequest) -> None:
    """Raise ValueError for an option that cannot be meant, before anything is read."""
    if request.format not in FORMATS:
        raise ValueError(f"--from {request.format!r}: must be one of {', '.join(FORMATS)}")
    if request.names not in NAMES:
        raise ValueError(f"--names {request.names!r}: must be {' or '.join(NAMES)}")
    if request.teacher and not MODEL_NAME.fullmatch(request.teacher):
        raise ValueError(f"--teacher {request.teacher!r}: a name is a small letter, then small letters, digits or _")
    if request.front_end not in ("", *FRONT_ENDS, WAVEFORM):
        raise ValueError(f"--front-end {request.front_end!r}: must be one of {', '.join((*FRONT_ENDS, WAVEFORM))}")
    limits = (("--rate", request.rate, MAX_RATE), ("--clip-seconds", request.clip_seconds, MAX_CLIP_SECONDS))
    for option, value, most in (*limits, ("--k", request.k, MAX_TAGS)):
        if not 0 <= value <= most:
            raise ValueError(f"{option} {value:g}: must be above 0 and at most {most:,}; leave it out for the default")


def describe(request: ImportRequest, source: Source, tags: Sequence[str]) -> About:
    """What the store says of itself; reads every file, for its SHA-256."""
    published = FORMATS[request.format]
    teacher = request.teacher or request.format
    seconds = request.clip_seconds or published.clip_seconds
    files = {path.name: file_digest(path) for path in sorted(source.files, key=lambda path: path.name)}
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in files.items())
    column: Any = {"holds": source.holds, "teachers": [teacher], "layout": "dense"}
    if k := source.k or request.k:
        column |= {"layout": "topk", "k": k}
    column |= {"width": len(tags), "dtype": "float16"}
    if source.num_frames:
        hop = source.hop or seconds / source.num_frames
        column |= {"frames": {"count": source.num_frames, "hop_seconds": hop, "first_seconds": hop / 2}}
    about: Any = {
        "teachers": [
            {
                "name": teacher,
                "weights_sha256": hashlib.sha256(listed.encode()).hexdigest(),
                "front_end": request.front_end or published.front_end,
                "imported_from": {"format": request.format, "files": files},
            }
        ],
        "tags": list(tags),
        "labels": "multi",
        "views": {
            "version": DRAWN_ELSEWHERE,
            "augment": source.augment,
            "clip_seconds": seconds,
            "rate": request.rate or published.rate,
            "count": len(source.rows_VN),
        },
        "columns": {"frames" if source.num_frames else "outputs": column},
    }
    return about
