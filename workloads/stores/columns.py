"""One column of a store in memory: outputs to rows of a fixed number of bytes, rows to a file, and back.

A shard's file of a column is a .npy file of shape (views, clips): view by view, because an epoch reads one view of
every clip. A dense row is its values; a top-k row is a record of `tags` (`stores/topk.py`) and `values`. Nothing in a
file depends on time, place or who wrote it.

Axes: N clips, V views, B rows that are read, C values of a whole row, J kept tags of a row, Y bytes of a row, packed
or unpacked; where the column has frames, F of them follow.
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
BOUNDS = {"logits": (-12.0, 12.0), "probabilities": (0.0, 1.0)}  # of uint8: 0 and 255; what is beyond becomes these


class RowCodec:
    """What is specific to a column: the type of its rows, from outputs, and to values.

    Values are fp16 and come back exactly; of dtype uint8 they come back in 255 equal steps between two bounds. Rows
    have two forms: packed as in files, and unpacked as a reader keeps them in memory, where tags are integers.
    """

    def __init__(self, name: str, column: Column) -> None:
        self.name = name
        self.width = column["width"]
        self.k = column["k"] if column["layout"] == "topk" else None
        self.tag_code = TagCode(self.k, self.width) if self.k else None
        self._frames = (column["frames"]["count"],) if "frames" in column else ()
        self._bounds = BOUNDS[column["holds"]] if column["dtype"] == "uint8" else None
        self._number = np.dtype("u1" if self._bounds else "<f2")
        self.shape = (self.k or self.width, *self._frames)  # of a row's values
        fields: Any = (self._number, self.shape)
        if self.tag_code:
            fields = [("tags", "u1", (self.tag_code.size,)), ("values", self._number, self.shape)]
        self._row = np.dtype(fields)
        self._tag = np.dtype("<i2" if self.width <= 2**15 else "<i4")
        self._tag_bytes = self.k * self._tag.itemsize if self.k else 0  # of an unpacked row

    @property
    def row_bytes(self) -> int:
        """Of a packed row."""
        return self._row.itemsize

    @property
    def unpacked_bytes(self) -> int:
        return self.row_bytes - (self.tag_code.size if self.tag_code else 0) + self._tag_bytes

    def rows(self, outputs: NDArray[np.floating] | TopK, clip_ids: Sequence[str], views: int) -> NDArray[np.uint8]:
        """Rows bytes_VNY of the outputs of these clips: outputs_NVC, or of a column of top k also a TopK of NVJ.

        Raises ValueError, naming clips, for values that are infinite, NaN or too large for fp16, and for a TopK whose
        tags are not k different ones.
        """
        given = outputs.values if isinstance(outputs, TopK) else outputs
        last = self.shape if isinstance(outputs, TopK) else (self.width, *self._frames)
        if given.shape != (len(clip_ids), views, *last):
            raise ValueError(
                f"column {self.name!r}: its shape is {given.shape}; {len(clip_ids)} clips in {views} views with {last} "
                "values are expected"
            )
        self._require_storable(given, clip_ids)
        values = np.ascontiguousarray(given.swapaxes(0, 1), dtype="<f2")
        if self.tag_code is None:
            return self._bytes(self._stored(values))
        if isinstance(outputs, TopK):
            given_tags = self._checked_tags(outputs.tags, clip_ids).swapaxes(0, 1)
            places = np.argsort(given_tags, axis=-1)
            tags = np.take_along_axis(given_tags, places, axis=-1)
        else:
            tags = places = select_topk(values.max(axis=-1) if self._frames else values, self.tag_code.k)
        kept = np.take_along_axis(values, places.reshape(*places.shape, *[1] * len(self._frames)), axis=2)
        rows = np.empty(values.shape[:2], self._row)
        rows["tags"] = self.tag_code.encode(tags.reshape(-1, self.tag_code.k)).reshape(*rows.shape, -1)
        rows["values"] = self._stored(kept)
        return self._bytes(rows)

    def _require_storable(self, values_NVC: NDArray[np.floating], clip_ids: Sequence[str]) -> None:
        """ValueError, naming clips, where a value is no finite number of fp16."""
        with np.errstate(over="ignore", invalid="ignore"):
            broken = ~np.isfinite(values_NVC.astype(np.float16)).reshape(len(clip_ids), -1).all(axis=1)
        if broken.any():
            names = [clip_ids[number] for number in np.flatnonzero(broken).tolist()]
            raise ValueError(
                f"column {self.name!r}: {len(names)} clips have a value that is NaN, infinite or above {LARGEST:g}: "
                f"{name_some(names)}; check the teacher, nothing of this shard is stored"
            )

    def _checked_tags(self, tags_NVJ: NDArray[np.integer], clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """The tags; ValueError, naming clips, where they are not different tags of the column."""
        if tags_NVJ.shape[2:] != (self.k,) or tags_NVJ.shape[0] != len(clip_ids):
            raise ValueError(f"column {self.name!r}: the shape of its tags is {tags_NVJ.shape}; {self.k} are expected")
        ordered = np.sort(tags_NVJ, axis=-1).astype(np.int64)
        wrong = (np.diff(ordered, axis=-1) == 0).any(axis=-1) | (ordered[..., 0] < 0) | (ordered[..., -1] >= self.width)
        if wrong.any():
            names = [clip_ids[number] for number in np.flatnonzero(wrong.any(axis=1)).tolist()]
            raise ValueError(
                f"column {self.name!r}: {len(names)} clips do not have {self.k} different tags of {self.width}: "
                f"{name_some(names)}"
            )
        return tags_NVJ.astype(np.int64)

    def _stored(self, values: NDArray[np.float16]) -> NDArray[Any]:
        """Values as the numbers that are stored."""
        if self._bounds is None:
            return values
        low, high = self._bounds
        return np.rint((values.astype(np.float32).clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)

    def _bytes(self, rows_VN: NDArray[Any]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(rows_VN).view(np.uint8).reshape(*rows_VN.shape[:2], self.row_bytes)

    def unpack(self, raw_BY: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Unpacked rows bytes_BY of packed ones; ValueError where the tags of one are no set of k."""
        if self.tag_code is None:
            return raw_BY
        split = self.tag_code.size
        tags_BJ = self.tag_code.decode(raw_BY[:, :split]).astype(self._tag)
        return np.concatenate([tags_BJ.view(np.uint8), raw_BY[:, split:]], axis=1)

    def values(self, unpacked_BY: NDArray[np.uint8]) -> tuple[NDArray[np.float16], NDArray[np.int64] | None]:
        """Values, values_BC or values_BJ, and tags_BJ of unpacked rows."""
        if self.tag_code is None:
            return self._restored(unpacked_BY), None
        split = self._tag_bytes
        values = self._restored(np.ascontiguousarray(unpacked_BY[:, split:]))
        return values, unpacked_BY[:, :split].view(self._tag).astype(np.int64)

    def _restored(self, stored: NDArray[np.uint8]) -> NDArray[np.float16]:
        numbers = stored.view(self._number).reshape(-1, *self.shape)
        if self._bounds is None:
            return numbers
        low, high = self._bounds
        return (numbers * np.float32((high - low) / 255) + np.float32(low)).astype(np.float16)

    def file(self, raw_VNY: NDArray[np.uint8]) -> bytes:
        """The content of a shard's file with these rows, given as bytes."""
        raw = np.ascontiguousarray(raw_VNY)
        rows = raw.view(self._row)[..., 0] if self.tag_code else raw.view(self._number)
        rows = rows if self.tag_code else rows.reshape(*raw.shape[:2], *self.shape)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, rows, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    def file_size(self, *, views: int, clips: int) -> int:
        """The bytes of a shard's file with as many rows."""
        dtype, shape = (self._row, ()) if self.tag_code else (self._number, self.shape)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (views, clips, *shape)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        return len(buffer.getvalue()) + views * clips * self.row_bytes

    def parse(self, content: bytes, name: str, *, views: int, clips: int, sha256: str) -> NDArray[np.uint8]:
        """The rows of a shard's file called `name`, as bytes_VNY.

        Raises ValueError, naming it, where its SHA-256 is another one, or it does not hold finite rows of this column:
        what was stored is checked again, because training on a NaN of a teacher would destroy the student.
        """
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(
                f"{name}: its SHA-256 differs from the one in its name ({len(content)} bytes are there): it is damaged "
                "or cut short; copy it again, or remove it and make the store again: only this shard is made"
            )
        start = len(content) - views * clips * self.row_bytes
        if start <= 0 or not self._is_header(content[:start], (views, clips)):
            raise ValueError(f"{name}: holds no {clips} clips in {views} views; it belongs to another store")
        raw = np.frombuffer(content, np.uint8, offset=start).reshape(views, clips, self.row_bytes)
        if not self._is_sound(raw.reshape(-1, self.row_bytes)):
            raise ValueError(f"{name}: holds a value that is no finite number, or a tag that does not exist")
        return raw

    def _is_header(self, header: bytes, shape: tuple[int, int]) -> bool:
        file = io.BytesIO(header)
        try:
            version = np.lib.format.read_magic(file)
            found, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            return False
        whole, kind = (shape, self._row) if self.tag_code else ((*shape, *self.shape), self._number)
        return version == (1, 0) and found == whole and dtype == kind and file.tell() == len(header)

    def _is_sound(self, raw_BY: NDArray[np.uint8]) -> bool:
        split = self.tag_code.size if self.tag_code else 0
        if self.tag_code and not self.tag_code.is_sound(raw_BY[:, :split]):
            return False
        return self._bounds is not None or _is_finite(np.ascontiguousarray(raw_BY[:, split:]))


def _is_finite(halves_BY: NDArray[np.uint8]) -> bool:
    """Whether all fp16 numbers in these bytes are; by their bits, which is several times as fast as np.isfinite."""
    return not bool((halves_BY.view("<u2") & EXPONENT == EXPONENT).any())
