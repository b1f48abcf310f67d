"""One column of a store in memory: outputs to rows of a fixed number of bytes, rows to a file, and back.

A shard's file of a column is a .npy file of shape (views, clips): view by view, because an epoch reads one view of
every clip. A dense row is its values in fp16; a top-k row is a record of `tags` (`stores/topk.py`) and `values`.
Nothing in a file depends on time, place or who wrote it.

Axes: N clips, V views, B rows that are read, C values of a whole row, J kept values of a row.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.runtime.text import name_some
from workloads.stores.description import Column
from workloads.stores.topk import TagCode, TopK, select_topk

LARGEST = float(np.finfo(np.float16).max)
EXPONENT = 0x7C00  # the bits of an fp16 number that are all 1 where it is infinite or NaN


class RowCodec:
    """What is specific to a column: the type of its rows, from outputs, and to values."""

    def __init__(self, name: str, column: Column) -> None:
        self.name = name
        self.width = column["width"]
        self.k = column["k"] if column["layout"] == "topk" else None
        self.tag_code = TagCode(self.k, self.width) if self.k else None
        fields: Any = ("<f2", (self.width,))
        if self.tag_code:
            fields = [("tags", "u1", (self.tag_code.size,)), ("values", "<f2", (self.k,))]
        self.dtype = np.dtype(fields)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize

    def rows(self, outputs: NDArray[np.floating] | TopK, clip_ids: Sequence[str], views: int) -> NDArray[Any]:
        """Rows (views, clips) of the outputs of these clips: outputs_NVC, or of a column of top k also a TopK of NVJ.

        Raises ValueError, naming clips, for values that are infinite, NaN or too large for fp16, and for a TopK whose
        tags are not k different ones.
        """
        given = outputs.values if isinstance(outputs, TopK) else outputs
        last = self.k if isinstance(outputs, TopK) else self.width
        if given.shape != (len(clip_ids), views, last):
            raise ValueError(
                f"column {self.name!r}: its shape is {given.shape}; {len(clip_ids)} clips in {views} views with {last} "
                "values are expected"
            )
        self._require_storable(given, clip_ids)
        values = np.ascontiguousarray(given.swapaxes(0, 1), dtype="<f2")
        if self.tag_code is None:
            return values
        top = select_topk(values, self.tag_code.k)
        if isinstance(outputs, TopK):
            top = self._in_order(outputs.tags.swapaxes(0, 1), values, clip_ids)
        rows = np.empty(values.shape[:2], self.dtype)
        rows["tags"] = self.tag_code.encode(top.tags.reshape(-1, self.tag_code.k)).reshape(*rows.shape, -1)
        rows["values"] = top.values
        return rows

    def _require_storable(self, values_NVC: NDArray[np.floating], clip_ids: Sequence[str]) -> None:
        """ValueError, naming clips, where a value is no finite number of fp16."""
        with np.errstate(over="ignore", invalid="ignore"):
            broken = ~np.isfinite(values_NVC.astype(np.float16)).all(axis=(1, 2))
        if broken.any():
            names = [clip_ids[number] for number in np.flatnonzero(broken).tolist()]
            raise ValueError(
                f"column {self.name!r}: {len(names)} clips have a value that is NaN, infinite or above {LARGEST:g}: "
                f"{name_some(names)}; check the teacher, nothing of this shard is stored"
            )

    def _in_order(self, tags_VNJ: NDArray[np.integer], values_VNJ: NDArray[np.float16], ids: Sequence[str]) -> TopK:
        """The same with tags ascending; ValueError, naming clips, where they are not different tags of the column."""
        order = np.argsort(tags_VNJ, axis=-1)
        tags = np.take_along_axis(tags_VNJ, order, axis=-1).astype(np.int64)
        wrong = (np.diff(tags, axis=-1) == 0).any(axis=-1) | (tags[..., 0] < 0) | (tags[..., -1] >= self.width)
        if wrong.any():
            names = [ids[number] for number in np.flatnonzero(wrong.any(axis=0)).tolist()]
            raise ValueError(
                f"column {self.name!r}: {len(names)} clips do not have {self.k} different tags of {self.width}: "
                f"{name_some(names)}"
            )
        return TopK(tags, np.take_along_axis(values_VNJ, order, axis=-1))

    def values(self, raw_B: NDArray[np.uint8]) -> tuple[NDArray[np.float16], NDArray[np.int64] | None]:
        """Values, values_BC or values_BJ, and tags_BJ of rows that are given as bytes (B, row_bytes)."""
        if self.tag_code is None:
            return raw_B.view("<f2"), None
        split = self.tag_code.size
        return np.ascontiguousarray(raw_B[:, split:]).view("<f2"), self.tag_code.decode(raw_B[:, :split])

    def file(self, rows_VN: NDArray[Any]) -> bytes:
        """The content of a shard's file."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(rows_VN), version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    def parse(self, content: bytes, name: str, *, views: int, clips: int, sha256: str) -> NDArray[np.uint8]:
        """The rows of a shard's file called `name`, as bytes (views, clips, row_bytes).

        Raises ValueError, naming it, where its SHA-256 is another one, or it does not hold finite rows of this column:
        what was stored is checked again, because training on a NaN of a teacher would destroy the student.
        """
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(
                f"{name}: its SHA-256 differs from the one in its name ({len(content)} bytes are there): it is damaged "
                "or cut short; copy it again, or remove it and make the store again: only this shard is made"
            )
        start = len(content) - views * clips * self.row_bytes
        raw = np.frombuffer(content, np.uint8, offset=max(0, start))
        if start <= 0 or not self._is_header(content[:start], (views, clips)):
            raise ValueError(f"{name}: holds no {clips} clips in {views} views; it belongs to another store")
        raw = raw.reshape(views, clips, self.row_bytes)
        if not self._is_sound(raw.view(self.dtype if self.tag_code else "<f2")):
            raise ValueError(f"{name}: holds a value that is no finite number, or a tag that does not exist")
        return raw

    def _is_header(self, header: bytes, shape: tuple[int, int]) -> bool:
        file = io.BytesIO(header)
        try:
            version = np.lib.format.read_magic(file)
            found, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            return False
        whole = shape if self.tag_code else (*shape, self.width)
        kind = self.dtype if self.tag_code else np.dtype("<f2")
        return version == (1, 0) and found == whole and dtype == kind and file.tell() == len(header)

    def _is_sound(self, rows: NDArray[Any]) -> bool:
        if self.tag_code is None:
            return _is_finite(rows)
        tags = rows["tags"].reshape(-1, self.tag_code.size)
        return _is_finite(rows["values"]) and self.tag_code.is_sound(np.ascontiguousarray(tags))


def _is_finite(values: NDArray[np.float16]) -> bool:
    """Whether all are; by their bits, which is several times as fast as np.isfinite."""
    return not bool((np.ascontiguousarray(values).view(np.uint16) & EXPONENT == EXPONENT).any())
