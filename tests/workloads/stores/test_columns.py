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
    values, tags = codec().values(parsed(codec(), content)[1])
    assert tags is None
    assert np.array_equal(values, outputs()[:, 1].astype(np.float16))
    (tmp_path / "x.npy").write_bytes(content)
    assert np.array_equal(np.load(tmp_path / "x.npy"), outputs().swapaxes(0, 1).astype(np.float16))


def test_top_k_rows_come_back_whatever_their_order_was():
    column, rng = codec(k=4), np.random.default_rng(1)
    content = column.file(column.rows(outputs(), CLIPS, 2))
    values, tags = column.values(parsed(column, content)[0])
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
    rows = column.rows(outputs(), CLIPS, 2)
    rows[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"^x\.npy: holds a value that is no finite number"):
        parsed(column, column.file(rows))
    top = codec(k=4).rows(outputs(), CLIPS, 2)
    top["tags"][0, 0] = 0
    with pytest.raises(ValueError, match="a tag that does not exist"):
        parsed(codec(k=4), codec(k=4).file(top))
