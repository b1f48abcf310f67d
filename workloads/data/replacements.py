"""What is trained on in the place of a clip that turns out to be unusable while it is read.

A clip may have become unusable since it was checked: its bytes in an archive are damaged. The clip in its place depends
on its clip_id only, so it is the same on every worker, in every epoch and after a resume. A run records each such clip
once, whichever worker has read it: the loop asks for what is to be recorded, with a function that exchanges values
between all workers.

Axes: B clips of a shard, T samples.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip
from workloads.data.loading import CropReader, Crops, CropsRead, ShardRequest
from workloads.runtime.rng import keyed_generator

MAX_TRIES = 20  # clips in a row that are unusable too


class ReplacedClip(NamedTuple):
    """A clip that turned out to be unusable."""

    step: int  # in which that was found first
    clip_id: str
    reason: str
    by: str  # the clip_id of the clip in its place


class Replacements:
    """Replaces unusable clips by other training clips. Used by the thread that trains."""

    def __init__(self, clips: Sequence[Clip], store: ClipStore, reader: CropReader) -> None:
        self._clips, self._store, self._reader = clips, store, reader
        self._found: list[ReplacedClip] = []  # by this worker, since `unrecorded` was last called
        self._recorded: set[str] = set()

    def fill(
        self, request: ShardRequest, rows: list[int], crops: Crops, *, step: int
    ) -> tuple[ShardRequest, list[int], Crops]:
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
                raise ValueError(
                    f"clip {request.keys[row].clip_id} cannot be used any more: {reason}, and so are the clips for its "
                    "place"
                )
            keys[row], entries[row], rows[row] = key, alone.clips[0], number
            samples[row], views[row] = read.samples[0], read.views[0]
            self._found.append(ReplacedClip(step, request.keys[row].clip_id, reason, key.clip_id))
        return (
            ShardRequest(tuple(keys), tuple(entries)),
            rows,
            Crops(crops.x_BT, CropsRead(tuple(samples), tuple(views), {})),
        )

    def unrecorded(self, gather: Callable[[Any], list[Any]]) -> list[ReplacedClip]:
        """The clips that workers have replaced and that are not recorded yet; from now on they count as recorded.

        Every worker calls it, and equally often; all get the same. `gather` returns the values of all workers.
        """
        found: list[list[ReplacedClip]] = gather(self._found)
        self._found = []
        first = {clip.clip_id: clip for clip in sorted(chain.from_iterable(found), reverse=True)}
        clips = sorted(clip for clip in first.values() if clip.clip_id not in self._recorded)
        self.mark_recorded(clip.clip_id for clip in clips)
        return clips

    def mark_recorded(self, clip_ids: Iterable[str]) -> None:
        """These clips are in the run's records already, from before a resume."""
        self._recorded.update(clip_ids)

    def _draw(self, clip_id: str, attempt: int) -> int:
        return int(keyed_generator("replacement", clip_id, attempt).integers(len(self._clips)))
