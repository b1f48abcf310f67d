"""Published folders: checkpoints, taggers and what else is whole or not there.

Contract: the parts of a folder are written first, then its marker by exclusive create, so a folder without marker is
unfinished and readers ignore it, whatever a kill left in it. One process at a time may publish to a URI. None of these
functions retries.
"""

from collections.abc import Callable
from pathlib import Path

from orchestrator.storage import object_store
from workloads.runtime.checkpoint_store import MARKER, newest_delivered


def publish(folder: Path, uri: str, *, before_commit: Callable[[], None] = lambda: None) -> str:
    """Copy a finished checkpoint folder to a URI, its marker last; returns the URI.

    Safe to repeat: a folder that is published already with the same marker stays; with another one it is replaced. A
    kill, or an exception of `before_commit`, which is called between the parts and the marker, leaves a folder without
    marker. One process at a time may publish to a URI; `before_commit` is where the caller checks that.
    """
    fs, path = object_store.filesystem(uri)
    marker = (folder / MARKER).read_bytes()
    if fs.exists(object_store.join(path, MARKER)):
        if fs.cat_file(object_store.join(path, MARKER)) == marker:
            return uri
        remove_folder(uri)
    if object_store.is_local(uri):  # on S3, makedirs would create the bucket
        fs.makedirs(path, exist_ok=True)
    for part in sorted(folder.iterdir()):
        if part.name != MARKER:
            object_store.put_file(part, object_store.join(uri, part.name))
    before_commit()
    object_store.create_exclusively(object_store.join(uri, MARKER), marker)
    return uri


def published_folder(uri: str) -> str:
    """The URI of the published folder that `uri` stands for: itself, or the newest attempt's within `RUN/models/NAME`.

    ValueError where there is none.
    """
    if object_store.exists(object_store.join(uri, MARKER)):
        return uri
    newest = newest_delivered(list_committed(uri))
    if newest is None:
        raise ValueError(f"checkpoint {uri!r}: no {MARKER} there, so it does not exist or was never finished")
    return object_store.join(uri, newest)


def fetch(uri: str, folder: Path) -> Path:
    """Copy a published folder to `folder` and return that; a local URI is returned as a path, without a copy.

    ValueError where there is none at the URI (`published_folder`).
    """
    uri = published_folder(uri)
    fs, path = object_store.filesystem(uri)
    if object_store.is_local(uri):
        return object_store.local_path(uri)
    folder.mkdir(parents=True, exist_ok=True)
    for part in fs.ls(path, detail=False):
        fs.get_file(part, str(folder / part.rsplit("/", 1)[-1]))
    return folder


def list_committed(uri: str) -> list[str]:
    """The names of the folders directly below a URI that have their marker, sorted."""
    return [name for name in object_store.list_names(uri) if object_store.exists(object_store.join(uri, name, MARKER))]


def remove_folder(uri: str) -> None:
    """Remove a folder, if it exists; its marker first, so that a kill in the middle leaves an unfinished folder."""
    fs, path = object_store.filesystem(uri)
    if fs.exists(object_store.join(path, MARKER)):
        fs.rm_file(object_store.join(path, MARKER))
    if fs.exists(path):
        fs.rm(path, recursive=True)
