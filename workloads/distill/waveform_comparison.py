"""Whether a student gets the waveforms that the teachers of a store got: some clips are compared before the first step.

A store has checksums of a sample of its clips. Where nothing can be compared, the reason is kept, never silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from workloads.config.edge import Edge
from workloads.config.recipe import Augment, restore
from workloads.data.clip_store import ClipStore
from workloads.data.decode import BrokenClip
from workloads.data.stored_mixtures import StoredMixtures
from workloads.data.view_checksum import view_sha256
from workloads.runtime.rng import keyed_seed
from workloads.stores.description import ViewChecksum
from workloads.stores.store import Store

MOST_COMPARED = 8  # clips of a store


@dataclass(frozen=True)
class WaveformComparison:
    """How many clips have the waveforms that the teachers got; of none, why, and how that is changed."""

    compared: int
    reason: str = ""
    fix: str = ""  # empty: the recipe says that there is nothing to compare


def compare_waveforms(
    store: Store, edge: Edge, clip_ids: Sequence[str], cache: ClipStore, mixtures: StoredMixtures | None
) -> WaveformComparison:
    """Compare up to `MOST_COMPARED` of these training clips, each in the view of which the store has a checksum.

    The same clips at every call. Raises ValueError, naming the clip, for the first one that differs.
    """
    if edge.view == "other":
        return WaveformComparison(0, "view = 'other': its rows are of views that nobody hears again")
    rate, checksums = store.description["views"]["rate"], store.checksums()
    if not checksums:
        return WaveformComparison(
            0, "it has no checksums, another program made its rows", "stores that `antiphon teach` fills have some"
        )
    if rate != cache.rate:  # the sound is the same, the samples are not
        return WaveformComparison(
            0,
            f"its teachers got clips at {rate} Hz, here they have {cache.rate} Hz",
            f"set data.rate = {max(rate, cache.rate)} {'here' if rate > cache.rate else 'where the store is filled'}",
        )
    rows = {clip_id: row for row, clip_id in enumerate(clip_ids) if clip_id in checksums}
    compared = 0
    for clip_id in sorted(rows, key=lambda clip_id: keyed_seed("compared", clip_id)):
        compared += _compare(store, edge, clip_ids, rows[clip_id], checksums[clip_id], cache, mixtures)
        if compared == MOST_COMPARED:
            break
    if compared:
        return WaveformComparison(compared)
    return WaveformComparison(
        0,
        f"none of the {len(checksums)} clips of which it has checksums can be compared here: {len(rows)} of them train"
        + (", which are damaged, or mixed with clips that do not train" if rows else ""),
        "train on more clips of the store" + ("" if rows else ", or fill it again, for more checksums"),
    )


def _compare(
    store: Store,
    edge: Edge,
    clip_ids: Sequence[str],
    row: int,
    checksum: ViewChecksum,
    cache: ClipStore,
    mixtures: StoredMixtures | None,
) -> bool:
    """Whether a clip, given by its row, could be compared; ValueError where its waveform differs."""
    views, view, clip_id = store.description["views"], checksum["view"], clip_ids[row]
    other = mixtures.partner(row, view) if mixtures else row
    if other < 0:  # mixed with a clip that is not decoded here
        return False
    partner, augment = cache.entry(clip_ids[other]) if mixtures else None, restore(Augment, views["augment"])
    seconds = views["clip_seconds"]
    try:
        found = view_sha256(cache, augment, cache.entry(clip_id), view, clip_seconds=seconds, partner=partner)
    except BrokenClip:  # in training another clip takes its place
        return False
    if found != checksum["sha256"]:
        raise ValueError(
            f"edges {edge.key}: store {store.uri!r}: its teachers got another waveform than the student does of clip "
            f"{clip_id!r} in view {view}: the file was changed, or is decoded differently on this machine; make the "
            "store again from these files"
        )
    return True
