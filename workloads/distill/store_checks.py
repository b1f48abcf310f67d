"""Whether a store fits the run that it shall teach: outputs, tags, views, rows. Decides nothing, changes nothing.

All errors name the edge and the store, the value, and what it must be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from workloads.config.edge import Edge
from workloads.config.recipe import Augment, Recipe, restore
from workloads.data.augment import VIEW_VERSION
from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip, Dataset
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some
from workloads.stores.description import (
    DRAWN_ELSEWHERE,
    Column,
    Description,
    ViewRecipe,
    is_for_tags,
    require_compatible,
)
from workloads.stores.reader import NotStored, StoreReader
from workloads.stores.store import open_store

FRAME_SLACK = 0.1  # seconds by which a clip may be longer than the teachers' view of it: encoders add some
WHAT_IS_CARRIED = {
    "logits": "logits or probabilities of whole clips",
    "embedding": "embeddings",
    "frames": "logits or probabilities of frames",
    "temporal": "temporal profiles",
}
OF_TAGS, IN_TIME = ("logits", "frames"), ("frames", "temporal")
MIXING = {"mixup", "mixup_alpha", "mixup_on"}  # of [augment]: rows are of single clips, and mixed as the clips are


def check_stores(recipe: Recipe, files: Opener) -> tuple[str, ...]:
    """Compare the stores of a recipe with it, before any clip is read; returns the tags of a run that they teach.

    These are those of the first store that logits are taken of, in its order; empty where there is none. The data need
    not have them all, or any. Raises ValueError, with the first difference, where a store cannot be read, or is of
    other labels, views or tags than the run's.
    """
    tags: tuple[str, ...] = ()
    descriptions = {edge.store: open_store(edge.store, files).description for edge in recipe.edges if edge.store}
    _require_all_mixed(descriptions)
    for edge in recipe.edges:
        if not edge.store:
            continue
        description = descriptions[edge.store]
        column_of(description, edge)
        _require_same_views(description, edge, recipe)
        if edge.carries in OF_TAGS:
            require_compatible(description, {"labels": recipe.data.labels}, edge.store)
            tags = tags or tuple(description["tags"])
            _require_same_tags(description, edge, tags)
    return tags


def column_of(description: Description, edge: Edge) -> str:
    """The column that an edge names, or the only one with what it carries; ValueError where it is not clear which that
    is."""
    columns = description["columns"]
    fitting = [name for name, column in columns.items() if _carries(column) == edge.carries]
    place, what = f"edges {edge.key}: store {edge.store!r}", WHAT_IS_CARRIED[edge.carries]
    if edge.column and edge.column not in fitting:
        raise ValueError(
            f"{place}: column = {edge.column!r}: must be one with {what}; of its columns {', '.join(columns)} these "
            f"are {', '.join(fitting) or 'none'}"
        )
    if not fitting:
        how = "" if edge.carries == "logits" else f" with teach.{edge.carries} = true"
        has_embeddings = any(column["holds"] == "embedding" for column in columns.values())
        other = (
            "; its embeddings teach with carries = 'embedding' and loss = 'cosine' or 'mse'" if has_embeddings else ""
        )
        raise ValueError(
            f"{place}: none of its columns ({', '.join(columns)}) holds {what}, which carries = {edge.carries!r} "
            f"needs; fill a store{how}, or name one that has them{other}"
        )
    if not edge.column and len(fitting) != 1:
        raise ValueError(
            f"{place}: {len(fitting)} of its columns hold {what} ({', '.join(fitting)}); name one with column"
        )
    return edge.column or fitting[0]


def _carries(column: Column) -> str:
    """What an edge to this column carries."""
    if is_for_tags(column):
        return "frames" if "frames" in column else "logits"
    return "temporal" if column["holds"] == "profile" else "embedding"


def is_of_mixtures(description: Description) -> bool:
    """Whether the rows are of mixtures, in views that were drawn here: nobody knows the partners of others."""
    views = description["views"]
    return views["version"] != DRAWN_ELSEWHERE and bool(views["augment"].get("mixup"))


def require_rows(reader: StoreReader, edge: Edge, train: Sequence[Clip], dataset: Dataset) -> None:
    """NotStored where training clips have no rows, or ValueError where labels shall teach these, and are not known."""
    if not reader.missing:
        return
    if edge.missing == "error":
        raise NotStored(edge.store, reader.missing)
    missing = set(reader.missing)
    unknown = [clip.clip_id for clip in train if clip.clip_id in missing and np.isnan(dataset.targets([clip])).any()]
    if unknown:
        raise ValueError(
            f"edges {edge.key}: missing = 'labels': {len(unknown)} training clips have neither a row nor all labels: "
            f"{name_some(unknown)}; leave them out, or make a store that has them"
        )


def require_frames_start_at_zero(
    description: Description, edge: Edge, recipe: Recipe, train: Sequence[Clip], cache: ClipStore
) -> None:
    """ValueError where frames or profiles of a store cannot be followed in time: another program says when they are.

    It took clips from their beginning and did not roll them, as far as is known; here a part of a longer clip is cut
    out anywhere in it.
    """
    views = description["views"]
    if edge.carries not in IN_TIME or (edge.view != "other" and views["version"] != DRAWN_ELSEWHERE):
        return
    place = f"edges {edge.key}: store {edge.store!r}"
    if views["augment"].get("roll"):
        raise ValueError(f"{place}: its clips were rolled, so its frames do not say when; set view = 'same'")
    most, decoded = recipe.data.clip_seconds + FRAME_SLACK, cache.decoded()
    longer = [clip.clip_id for clip in train if decoded[clip.clip_id].seconds > most]
    if longer:
        raise ValueError(
            f"{place}: its frames are of the first {recipe.data.clip_seconds:g} s, and {len(longer)} training clips "
            f"are longer: {name_some(longer)}; cut them, or leave them out"
        )


def _require_all_mixed(descriptions: Mapping[str, Description]) -> None:
    """ValueError where stores of mixtures and others shall teach one run, or mixtures with other partners: a clip is
    mixed in one way."""
    lists = {uri: one["clips"]["sha256"] if is_of_mixtures(one) else "" for uri, one in descriptions.items()}
    if len({*lists.values()}) > 1:
        mixed, other = sorted(lists, key=lists.__getitem__, reverse=True)[:2]
        other = next(uri for uri in lists if lists[uri] != lists[mixed])
        raise ValueError(
            f"store {mixed!r}: its rows are of mixtures, and those of store {other!r} are not, or of mixtures of other "
            "clips; stores of mixtures teach together only where they are of the same clips"
        )


def _require_same_tags(description: Description, edge: Edge, tags: tuple[str, ...]) -> None:
    if strangers := sorted(set(tags) ^ set(description["tags"])):
        where = "this store" if strangers[0] in description["tags"] else "the first store"
        raise ValueError(
            f"edges {edge.key}: store {edge.store!r}: only {where} has the tag {strangers[0]!r}; all stores of a run "
            "have the same tags"
        )


def _require_same_views(description: Description, edge: Edge, recipe: Recipe) -> None:
    """ValueError, with the first difference, where the views that a store holds are not those that the edge says."""
    place, views = f"edges {edge.key}: store {edge.store!r}", description["views"]
    expected: dict[str, Any] = {"clip_seconds": recipe.data.clip_seconds}
    if is_of_mixtures(description):
        for key, value, only in (("view", edge.view, "same"), ("missing", edge.missing, "error")):
            if value != only:
                raise ValueError(
                    f"{place}: its rows are of mixtures, so {key} = {value!r} cannot be; set it to {only!r}"
                )
    if edge.view == "other":
        return
    imported_clean = edge.view == "clean" and views["version"] == DRAWN_ELSEWHERE  # clean whoever drew it
    if views["version"] != VIEW_VERSION and not imported_clean:
        raise ValueError(
            f"{place}: its views were drawn by {_drawn_by(views['version'])}, this is version {VIEW_VERSION}, so they "
            "cannot be drawn again here; make the store again, or set view = 'other' for rows of other views"
        )
    _require_known_augment(views, place)
    mixed = is_of_mixtures(description)
    if edge.view == "same":
        if views["rate"] != recipe.rate:
            where = "here" if views["rate"] > recipe.rate else "where the store is filled"
            raise ValueError(
                f"{place}: its teachers got clips at {views['rate']} Hz, here they have {recipe.rate} Hz; "
                f"set data.rate = {max(views['rate'], recipe.rate)} {where}"
            )
        expected |= {
            "augment": {key: value for key, value in asdict(recipe.augment).items() if mixed or key not in MIXING}
        }
    else:
        changed = {key: 0.0 for key, value in views["augment"].items() if value and key not in ("view_seed", *MIXING)}
        expected |= {"augment": changed if imported_clean else changed | {"view_seed": recipe.augment.view_seed}}
    require_compatible(description, {"views": expected}, edge.store)


def _require_known_augment(views: ViewRecipe, place: str) -> None:
    """ValueError where the code here cannot draw a store's views, though it has their version."""
    if views["version"] != DRAWN_ELSEWHERE:
        try:
            restore(Augment, views["augment"])
        except ValueError as mistake:
            raise ValueError(f"{place}: views.augment.{mistake}; make the store again") from None


def _drawn_by(version: int) -> str:
    return "another program" if version == DRAWN_ELSEWHERE else f"version {version} of the code"
