"""Random numbers that depend on a key only. Does not depend on torch, nor on what the numbers are used for."""

from hashlib import blake2b

import numpy as np


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A counter-based generator (Philox) for this key, the same in every process and on every machine."""
    return np.random.Generator(np.random.Philox(key=_digest(key)))


def keyed_seed(*key: str | int) -> int:
    """A seed of 63 bits for this key, for generators other than numpy's."""
    return _digest(key) >> 65


def _digest(key: tuple[str | int, ...]) -> int:
    """128 bits of blake2b over the parts; each carries type and length, so that ("ab", "c"), ("a", "bc") differ."""
    digest = blake2b(digest_size=16)
    for part in key:
        text = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest(), "little")
