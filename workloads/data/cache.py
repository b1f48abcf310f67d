"""Decoded clips on a local disk, shared by all runs of a node: each clip is decoded once. Knows no tags and no splits.

Axes: T samples.
"""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor

from workloads.config.recipe import Data
from workloads.data.clips import Clip
from workloads.data.decode import BrokenClip, decode, resample
from workloads.data.synthetic import render
from workloads.runtime.opener import Opener

FORMAT = 1  # of the stored files: raise it when decoding, resampling or storing changes
DECODERS = 2  # threads; decoding and resampling let go of Python's lock
AT_ONCE = 64  # clips between two looks at the limit


@dataclass(frozen=True)
class Broken:
    """A quarantined clip and why."""

    clip_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class _Job:
    """How one clip gets to its place, kept to make the file again if another run's clips pushed it out."""

    clip: Clip
    uri: str
    target: Path
    data: Data
    opener: Opener


class ClipCache:
    """Decoded clips as int16 .npy files at one rate in Hz, under names made from what their content depends on."""

    def __init__(self, folder: Path, *, rate: int, limit_gb: float) -> None:
        self.folder = folder
        self.rate = rate
        self.limit_gb = limit_gb
        self._jobs: dict[str, _Job] = {}

    def prepare(self, clips: Sequence[Clip], data: Data, opener: Opener) -> list[Broken]:
        """Decode every clip that is not stored yet; returns the quarantined ones, in the order of the clips.

        One process writes at a time; another waits and then finds everything there. A broken file is remembered until
        it changes. Above the limit, clips that are not asked for now go, those unused for longest first. Raises
        ValueError if the clips asked for do not fit by themselves.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        broken: list[Broken] = []
        with self._lock(), ThreadPoolExecutor(DECODERS) as pool:
            for left_over in self.folder.glob("*.part"):
                left_over.unlink()  # of a writer that was killed: we hold the lock, so nobody is writing
            jobs = list(pool.map(lambda clip: self._job(clip, data, opener), clips))
            room = _Room(self.folder, [job.target for job in jobs if isinstance(job, _Job)], limit_gb=self.limit_gb)
            for start in range(0, len(jobs), AT_ONCE):
                for result in pool.map(self._settle, jobs[start : start + AT_ONCE]):
                    if isinstance(result, Broken):
                        broken.append(result)
                    else:
                        self._jobs[result.clip.clip_id] = result
                        room.take(result.target)
        return broken

    def load(self, clip_id: str) -> Tensor:
        """The whole clip, x_T float32; only of clips that `prepare` did not call broken."""
        assert clip_id in self._jobs, f"clip {clip_id} is quarantined or was never prepared"
        job = self._jobs[clip_id]
        try:
            stored_T = np.load(job.target)
        except FileNotFoundError:  # another run needed the room
            with self._lock():
                remade = self._settle(job)
            assert isinstance(remade, _Job), f"clip {clip_id} was sound and is now broken: {remade}"
            stored_T = np.load(job.target)
        # Plain read and numpy: for a clip of seconds, a memory map costs a third more, and waking torch's threads most.
        return torch.from_numpy(np.multiply(stored_T, np.float32(1 / 32768), dtype=np.float32))

    def _lock(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / "writer.lock")

    def _job(self, clip: Clip, data: Data, opener: Opener) -> _Job | Broken:
        """Where a clip belongs; the name changes with the file's content, the rate and the format."""
        if data.format == "synthetic":
            uri, identity = clip.path, ""  # the path holds all that the sound depends on
        else:
            uri = opener.join(data.root, clip.path)
            try:
                identity = opener.identity(uri)
            except OSError as error:
                missing = isinstance(error, FileNotFoundError)
                return Broken(clip.clip_id, clip.path, "not found" if missing else f"cannot be read ({error})")
        key = hashlib.sha256(json.dumps([uri, identity, self.rate, FORMAT]).encode()).hexdigest()
        return _Job(clip, uri, self.folder / f"{key}.npy", data, opener)

    def _settle(self, job: _Job | Broken) -> _Job | Broken:
        """Store one clip unless it is stored; a broken one leaves its verdict beside its place."""
        if isinstance(job, Broken):
            return job
        verdict = job.target.with_suffix(".json")
        if job.target.exists():
            os.utime(job.target)  # in use, so not the first to go
            return job
        if verdict.exists():
            return Broken(job.clip.clip_id, job.clip.path, json.loads(verdict.read_text())["reason"])
        try:
            x_T = self._decode(job)
        except BrokenClip as error:
            broken = Broken(job.clip.clip_id, job.clip.path, str(error))
            _write_whole(verdict, json.dumps(asdict(broken)).encode())
            return broken
        except OSError as error:  # of the place, not of the file: no verdict is kept
            return Broken(job.clip.clip_id, job.clip.path, f"cannot be read ({error})")
        stored = io.BytesIO()
        np.save(stored, (x_T * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy())
        _write_whole(job.target, stored.getvalue())
        return job

    def _decode(self, job: _Job) -> Tensor:
        if job.data.format == "synthetic":
            return render(job.clip.clip_id, job.data, self.rate)
        with job.opener.open(job.uri) as file:
            x_T, rate = decode(file)
        return resample(x_T, orig=rate, new=self.rate)


class _Room:
    """The bytes in the folder against the limit: those that are needed, and the others, unused for longest first."""

    def __init__(self, folder: Path, needed: Sequence[Path], *, limit_gb: float) -> None:
        self.limit_gb = limit_gb
        self.clips = len(needed)
        self.taken = self.taken_bytes = 0
        keep = {path.name for path in needed}
        with os.scandir(folder) as entries:
            others = [(entry.stat(), entry.path) for entry in entries if _is_other(entry.name, keep)]
        others.sort(key=lambda other: other[0].st_mtime_ns)
        self.others = deque((stat.st_size, path) for stat, path in others)
        self.other_bytes = sum(size for size, _ in self.others)

    def take(self, needed: Path) -> None:
        """Count a needed file and make room for it; ValueError if the needed ones alone are above the limit."""
        self.taken += 1
        self.taken_bytes += needed.stat().st_size
        if self.taken_bytes > self.limit_gb * 1e9:
            whole_gb = self.taken_bytes / self.taken * self.clips / 1e9
            raise ValueError(
                f"data.cache_gb = {self.limit_gb}: {self.taken} of {self.clips} clips fill it; all need about "
                f"{whole_gb:.3g} GB: raise data.cache_gb above that"
            )
        while self.others and self.taken_bytes + self.other_bytes > self.limit_gb * 1e9:
            size, path = self.others.popleft()
            os.unlink(path)
            self.other_bytes -= size


def _is_other(name: str, needed: set[str]) -> bool:
    return name.endswith(".npy") and name not in needed


def _write_whole(target: Path, content: bytes) -> None:
    """Write a file that appears under its name complete or not at all."""
    part = target.with_name(target.name + ".part")
    part.write_bytes(content)
    part.replace(target)


def check_share(broken: Sequence[Broken], total: int, max_share: float) -> None:
    """Raise ValueError if more than `max_share` of all clips are quarantined, with the first three reasons."""
    if len(broken) > max_share * total:
        reasons = "; ".join(f"{entry.path}: {entry.reason}" for entry in broken[:3])
        raise ValueError(
            f"{len(broken)} of {total} clips ({len(broken) / total:.1%}) are broken, above data.max_broken_share = "
            f"{max_share:.1%}: {reasons}. Mend or remove them, or raise data.max_broken_share"
        )
