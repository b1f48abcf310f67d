"""Rows and files of a column: exact, the same bytes for the same outputs; what must not be stored is refused."""

import hashlib

import numpy as np
import pytest

from tests import stores
from workloads.stores.columns import RowCodec
from workloads.stores.topk import TopK

CLIPS = ("a", "b", "c")


def codec(*, k: int = 0) -> RowCodec:
    return RowCodec("outputs", stores.columns(tags=30, k=k)["outputs"])


def outputs(clips: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(-3, 2, (clips, 2, 30)).astype(np.float32)


def parsed(column: RowCodec, content: bytes) -> np.ndarray:
    sha256 = hashlib.sha256(content).hexdigest()
    return column.parse(content, "x.npy", views=2, clips=3, sha256=sha256)


def test_dense_rows_come_back_and_numpy_reads_the_file(tmp_path):
    content = codec().file(codec().rows(outputs(), CLIPS, 2))
    values, tags = codec().values(codec().unpack(parsed(codec(), content)[1]))
    assert tags is None
    assert np.array_equal(values, outputs()[:, 1].astype(np.float16))
    (tmp_path / "x.npy").write_bytes(content)
    assert np.array_equal(np.load(tmp_path / "x.npy"), outputs().swapaxes(0, 1).astype(np.float16))


def test_top_k_rows_come_back_whatever_their_order_was():
    column, rng = codec(k=4), np.random.default_rng(1)
    content = column.file(column.rows(outputs(), CLIPS, 2))
    values, tags = column.values(column.unpack(parsed(column, content)[0]))
    halves = outputs()[:, 0].astype(np.float16)
    assert tags is not None
    assert np.array_equal(tags, np.sort(np.argsort(-halves, axis=1)[:, :4], axis=1))
    assert np.array_equal(values, np.take_along_axis(halves, tags, axis=1))
    chosen = np.argsort(-outputs(), axis=-1)[..., rng.permutation(4)]
    given = TopK(chosen, np.take_along_axis(outputs(), chosen, axis=-1))
    assert column.file(column.rows(given, CLIPS, 2)) == content


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0])
def test_values_that_cannot_be_stored_name_their_clips(value, k):
    broken = outputs()
    broken[1, 1, 7] = value
    with pytest.raises(ValueError, match=r"column 'outputs': 1 clips have a value that is NaN, infinite.*: b; check"):
        codec(k=k).rows(broken, CLIPS, 2)


def test_outputs_of_another_shape_and_wrong_tags_are_refused():
    with pytest.raises(ValueError, match=r"its shape is \(3, 2, 30\); 2 clips in 2 views"):
        codec().rows(outputs(), ("a", "b"), 2)
    for tag in (5, 30, -1):
        tags = np.broadcast_to(np.arange(4), (3, 2, 4)).copy()
        tags[2, 0] = [5, 6, 7, tag]
        with pytest.raises(ValueError, match="1 clips do not have 4 different tags of 30: c"):
            codec(k=4).rows(TopK(tags, outputs()[..., :4]), CLIPS, 2)


def test_a_file_that_is_not_this_shard_is_named():
    column = codec()
    content = column.file(column.rows(outputs(), CLIPS, 2))
    with pytest.raises(ValueError, match=r"^x\.npy: its SHA-256 differs"):
        column.parse(content[:-1], "x.npy", views=2, clips=3, sha256=hashlib.sha256(content).hexdigest())
    for other in (content[:-60], b"", content + bytes(60), column.file(column.rows(outputs(2), CLIPS[:2], 2))):
        with pytest.raises(ValueError, match=r"^x\.npy: holds no 3 clips in 2 views"):
            parsed(column, other)
    for k, place, byte in ((0, slice(0, 2), 0xFF), (4, slice(-2, None), 0xFF), (4, slice(0, 5), 0)):
        column = codec(k=k)
        rows = column.rows(outputs(), CLIPS, 2)
        rows[0, 0, place] = byte  # a NaN, or no tags
        with pytest.raises(
            ValueError, match=r"^x\.npy: holds a value that is no finite number, or a tag that does not"
        ):
            parsed(column, column.file(rows))


def frame_codec(*, k: int = 0, dtype: str = "float16", holds: str = "logits") -> RowCodec:
    timing = {"count": 5, "hop_seconds": 0.04, "first_seconds": 0.02}
    return RowCodec(
        "frames", stores.columns(tags=30, k=k)["outputs"] | {"frames": timing, "dtype": dtype, "holds": holds}
    )


def frame_outputs() -> np.ndarray:
    return np.random.default_rng(2).normal(-3, 4, (3, 2, 30, 5)).astype(np.float32)


def test_frames_come_back():
    values, tags = frame_codec().values(
        parsed(frame_codec(), frame_codec().file(frame_codec().rows(frame_outputs(), CLIPS, 2)))[1]
    )
    assert tags is None
    assert np.array_equal(values, frame_outputs()[:, 1].astype(np.float16))


def test_of_frames_the_tags_with_the_largest_maximum_are_kept():
    column, halves = frame_codec(k=4), frame_outputs().astype(np.float16)[:, 0]
    content = column.file(column.rows(frame_outputs(), CLIPS, 2))
    values, tags = column.values(column.unpack(parsed(column, content)[0]))
    best = np.sort(np.argsort(-halves.max(axis=2), axis=1)[:, :4], axis=1)
    assert np.array_equal(tags, best)
    assert np.array_equal(values, np.take_along_axis(halves, best[..., None], axis=1))
    chosen = np.argsort(-frame_outputs().astype(np.float16).max(axis=-1), axis=-1)[..., :4]
    given = TopK(chosen, np.take_along_axis(frame_outputs(), chosen[..., None], axis=2))
    assert column.file(column.rows(given, CLIPS, 2)) == content


@pytest.mark.parametrize(("holds", "low", "high"), [("logits", -12.0, 12.0), ("probabilities", 0.0, 1.0)])
def test_frames_in_one_byte_are_within_half_a_step_of_the_bounds(holds, low, high):
    outputs = np.random.default_rng(3).uniform(2 * low, 2 * high, (3, 2, 30, 5)).astype(np.float32)
    column = frame_codec(k=4, dtype="uint8", holds=holds)
    assert column.row_bytes == column.tag_code.size + 4 * 5
    values, tags = column.values(column.unpack(parsed(column, column.file(column.rows(outputs, CLIPS, 2)))[0]))
    expected = np.take_along_axis(outputs[:, 0], tags[..., None], axis=1).clip(low, high)
    assert np.abs(values - expected).max() <= 0.51 * (high - low) / 255 + 2**-11 * high  # and what fp16 rounds
    assert values.max() == high
