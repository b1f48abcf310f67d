"""Damage to the files of a finished store, found while a command reads all of them: no mistake of the user's."""

import shlex

import numpy as np
from numpy.typing import NDArray

from workloads.stores.store import Store


class DamagedStore(OSError):
    """A file of a finished store is damaged or gone; the command line ends with exit code 1."""


def read_whole_shard(store: Store, column: str, number: int) -> NDArray[np.uint8]:
    """The rows of a shard's file, as `Store.read_shard`; DamagedStore, which says how to mend it, if it has none."""
    try:
        return store.read_shard(column, number)
    except ValueError as error:
        raise DamagedStore(
            f"{error}. Shard {number} of {len(store.manifest['shards'])}, column {column}: copy that file again from "
            "another copy of the store, or remove it and repeat the command that made the store, which makes this "
            f"shard alone again; `antiphon store verify {shlex.quote(store.uri)}` names all that is damaged"
        ) from None
