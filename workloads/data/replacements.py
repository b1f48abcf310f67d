"""What is trained on in the place of a clip that turns out to be unusable while it is read.

A clip may have become unusable since it was checked: its bytes in an archive are damaged. The clip in its place depends
on its clip_id only, so it is the same on every worker, in every epoch and after a resume.

Axes: B clips of a shard, T samples.
"""

import sys
from collections.abc import Sequence

from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip
from workloads.data.loading import CropReader, Crops, CropsRead, ShardRequest
from workloads.data.shard import ViewKey
from workloads.runtime.rng import keyed_generator

MAX_TRIES = 20  # clips in a row that are unusable too


class Replacements:
    """Replaces unusable clips by other training clips. Used by the thread that trains."""

    def __init__(self, clips: Sequence[Clip], store: ClipStore, reader: CropReader) -> None:
        self._clips, self._store, self._reader = clips, store, reader
        self._named: set[str] = set()

    def fill(self, request: ShardRequest, rows: list[int], crops: Crops) -> tuple[ShardRequest, list[int], Crops]:
        """The same shard with other clips in the place of the broken ones, in the view that these were drawn in.

        Writes their samples into `crops.x_BT`. Raises ValueError where no usable clip is found.
        """
        keys, entries, rows = list(request.keys), list(request.clips), list(rows)
        samples, views = list(crops.read.samples), list(crops.read.views)
        for row, reason in crops.read.broken.items():
            for attempt in range(MAX_TRIES):
                number = self._draw(request.keys[row].clip_id, attempt)
                key = request.keys[row]._replace(clip_id=self._clips[number].clip_id)
                alone = ShardRequest((key,), (self._store.entry(key.clip_id),))
                read = self._reader.read(alone, crops.x_BT[row : row + 1].numpy())
                if not read.broken:
                    break
            else:
                raise ValueError(self._described(request.keys[row], reason) + ", and so are the clips for its place")
            keys[row], entries[row], rows[row] = key, alone.clips[0], number
            samples[row], views[row] = read.samples[0], read.views[0]
            self._name(request.keys[row], reason, key)
        return (
            ShardRequest(tuple(keys), tuple(entries)),
            rows,
            Crops(crops.x_BT, CropsRead(tuple(samples), tuple(views), {})),
        )

    def _draw(self, clip_id: str, attempt: int) -> int:
        return int(keyed_generator("replacement", clip_id, attempt).integers(len(self._clips)))

    def _name(self, broken: ViewKey, reason: str, key: ViewKey) -> None:
        """Say it on stderr, once for each clip."""
        if broken.clip_id not in self._named:
            self._named.add(broken.clip_id)
            print(
                f"warning: {self._described(broken, reason)}; it is replaced by clip {key.clip_id} in every epoch",
                file=sys.stderr,
                flush=True,
            )

    def _described(self, broken: ViewKey, reason: str) -> str:
        return f"clip {broken.clip_id} cannot be used any more: {reason}"
