"""Stores on a disk and on S3: what is written is read back, the same whoever writes it; half a store is none."""

import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator.storage import object_store
from orchestrator.stores.writer import begin_store, finish_store, is_finished, unwritten, write_shard
from tests import stores
from workloads.stores.reader import NotStored
from workloads.stores.shard_files import THREADS

CLIPS = [f"clip-{number:02}" for number in range(11)]


def content_of(uri: str) -> dict[str, bytes]:
    return {path: object_store.get_bytes(object_store.join(uri, path)) for path in object_store.file_sizes(uri)}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def any_store(storage: str) -> str:
    """On a disk and on S3."""
    return object_store.join(storage, "store")


@pytest.mark.parametrize("memory_bytes", [0, 10**6], ids=["row by row", "blocks"])
def test_every_row_comes_back_exactly(any_store, tmp_path, memory_bytes):
    description = stores.about(tags=30, views=3, k=4, embedding=6)
    stores.fill(any_store, description, CLIPS)
    reader = stores.reader(any_store, tmp_path, memory_bytes=memory_bytes)
    rng = np.random.default_rng(0)
    asked = [(CLIPS[rng.integers(11)], int(rng.integers(3))) for _ in range(100)]
    drawn = [stores.outputs_of(clip_id, description)["outputs"][view].astype(np.float16) for clip_id, view in asked]
    clip_ids, views = zip(*asked, strict=True)
    rows = reader.read("outputs", clip_ids, views)
    best = np.sort(np.argsort(-np.stack(drawn), axis=1)[:, :4], axis=1)
    assert rows.known.all()
    assert np.array_equal(rows.tags, best)
    assert np.array_equal(rows.values, np.take_along_axis(np.stack(drawn), best, axis=1))
    embedding = reader.read("embedding", CLIPS, 2)
    expected = [stores.outputs_of(clip_id, description)["embedding"][2] for clip_id in CLIPS]
    assert embedding.tags is None
    assert np.array_equal(embedding.values, np.array(expected, np.float16))
    assert reader.read("outputs", [], 0).values.shape == (0, 4)
    for view in (3, -1):
        with pytest.raises(ValueError, match=r"view -?\d: its views are 0 to 2"):
            reader.read("outputs", CLIPS[:1], view)
    with pytest.raises(ValueError, match="has no column 'frames'; its columns are outputs, embedding"):
        reader.read("frames", CLIPS[:1], 0)
    reader.close()


def test_a_store_that_was_cut_off_is_refused_and_becomes_the_undisturbed_one(any_store, storage, tmp_path):
    undisturbed = object_store.join(storage, "undisturbed")
    stores.fill(undisturbed, stores.about(k=3), CLIPS)
    stores.fill(any_store, stores.about(k=3), CLIPS[::-1], most=0)
    with pytest.raises(ValueError, match=r"has no manifest\.json, so it is unfinished; run the command"):
        stores.reader(any_store, tmp_path)
    stores.fill(any_store, stores.about(k=3), CLIPS, most=2)
    assert not is_finished(any_store)
    description, plan = begin_store(any_store, stores.about(k=3), CLIPS, clips_per_shard=4)
    assert [shard.number for shard in unwritten(any_store, description, plan)] == [2]
    with pytest.raises(ValueError, match="1 shards are not written: 2; run what fills it again"):
        finish_store(any_store, description, plan)
    stores.fill(any_store, stores.about(k=3), CLIPS)
    assert is_finished(any_store)
    assert content_of(any_store) == content_of(undisturbed)
    stores.fill(any_store, stores.about(k=3), CLIPS)  # a finished one is left as it is
    assert content_of(any_store) == content_of(undisturbed)


def test_another_store_at_the_same_place_is_refused_with_the_first_difference(store):
    stores.fill(store, stores.about(), CLIPS, most=1)
    other = stores.about()
    other["teachers"][0]["weights_sha256"] = "b" * 64
    with pytest.raises(ValueError, match=r"teachers\[0\]\.weights_sha256 is 'a+', expected 'b+'"):
        stores.fill(store, other, CLIPS)
    more = stores.about()
    more["views"]["augment"]["gain_db"] = 6.0
    with pytest.raises(ValueError, match=r"views\.augment\.gain_db is missing, expected 6\.0"):
        stores.fill(store, more, CLIPS)
    less = stores.about()
    del less["views"]["augment"]["roll"]
    with pytest.raises(ValueError, match=r"views\.augment\.roll is 0\.5, expected none"):
        stores.fill(store, less, CLIPS)
    with pytest.raises(ValueError, match=r"clips\.count is 11, expected 10"):
        stores.fill(store, stores.about(), CLIPS[1:])


def test_a_value_that_is_no_number_names_its_clip_and_nothing_is_written(store):
    description, plan = begin_store(store, stores.about(embedding=3), CLIPS, clips_per_shard=4)
    outputs = {"outputs": np.zeros((4, 2, 10)), "embedding": np.zeros((4, 2, 3))}
    outputs["embedding"][2, 0, 1] = -np.inf
    with pytest.raises(ValueError, match=r"column 'embedding': 1 clips have a value that is NaN.*: clip-02;"):
        write_shard(store, description, plan[0], outputs)
    with pytest.raises(ValueError, match="a shard needs the columns outputs, embedding"):
        write_shard(store, description, plan[0], {"outputs": outputs["outputs"]})
    assert unwritten(store, description, plan) == plan


def test_a_shard_of_which_two_writers_had_different_bits_is_stored_once(store, tmp_path):
    stores.fill(store, stores.about(), CLIPS, most=3)
    description, plan = begin_store(store, stores.about(), CLIPS, clips_per_shard=4)
    write_shard(store, description, plan[1], {"outputs": np.ones((4, 2, 10))})
    assert len(object_store.list_names(object_store.join(store, "shards"))) == 4
    manifest = finish_store(store, description, plan)
    assert len(object_store.list_names(object_store.join(store, "shards"))) == 3
    assert stores.reader(store, tmp_path).read("outputs", CLIPS, 0).known.all()
    write_shard(store, description, plan[1], {"outputs": np.zeros((4, 2, 10))})  # one that was given up writes on
    assert finish_store(store, description, plan) == manifest
    assert len(object_store.list_names(object_store.join(store, "shards"))) == 3


def test_a_lost_shard_that_is_made_again_with_other_bits_is_refused(store, tmp_path):
    """As on another processor: the store has said that it is done with the bits that are lost."""
    stores.fill(store, stores.about(), CLIPS)
    description, plan = begin_store(store, stores.about(), CLIPS, clips_per_shard=4)
    names = object_store.list_names(object_store.join(store, "shards"))
    lost = object_store.join(store, "shards", names[1])
    whole = object_store.get_bytes(lost)
    object_store.remove_file(lost)
    assert unwritten(store, description, plan) == [plan[1]]
    write_shard(store, description, plan[1], {"outputs": np.ones((4, 2, 10))})
    assert unwritten(store, description, plan) == [plan[1]]
    for message in ("shards 1 were lost, and what was made again has other bits", "1 shards are not written: 1"):
        with pytest.raises(ValueError, match=message):
            finish_store(store, description, plan)
    object_store.put_bytes(lost, whole)
    finish_store(store, description, plan)
    assert object_store.list_names(object_store.join(store, "shards")) == names


def test_a_shard_that_was_cut_short_is_made_again(any_store, tmp_path):
    """Before the store was finished, by a power cut; after it, by a copy."""
    stores.fill(any_store, stores.about(k=3), CLIPS)
    whole = content_of(any_store)
    (second,) = (name for name in whole if name.startswith("shards/outputs-000001-"))
    for finished in (False, True):
        object_store.put_bytes(object_store.join(any_store, second), whole[second][:200])
        object_store.put_bytes(object_store.join(any_store, "clips.parquet"), whole["clips.parquet"][:-9])
        if not finished:
            object_store.remove_file(object_store.join(any_store, "manifest.json"))
        stores.fill(any_store, stores.about(k=3), CLIPS)
        assert content_of(any_store) == whole


def test_finishing_removes_its_own_leftovers_only(store, tmp_path):
    stores.fill(store, stores.about(), CLIPS, most=3)
    others = [tmp_path / "store" / name for name in ("run/.download.part", ".download.part", f"run/.{'a' * 32}.part")]
    own = [tmp_path / "store" / folder / f".{'a' * 32}.part" for folder in (".", "shards")]
    for path in (*others, *own):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    stores.fill(store, stores.about(), CLIPS)
    assert ([path.exists() for path in others], [path.exists() for path in own]) == ([True] * 3, [False] * 2)


def test_missing_rows_are_named_or_marked(store, tmp_path):
    stores.fill(store, stores.about(k=3), CLIPS)
    asked = ["clip-05", "x", *CLIPS[:2], "a"]
    reader = stores.reader(store, tmp_path, clip_ids=asked)
    assert reader.missing == ("a", "x")
    with pytest.raises(NotStored, match="holds no rows of 2 clips: x, a; make a store that does") as refused:
        reader.read("outputs", asked, 1)
    assert refused.value.clip_ids == ("x", "a")
    rows = reader.read("outputs", asked, 1, missing="mark")
    assert rows.known.tolist() == [True, False, True, True, False]
    assert np.isnan(rows.values[~rows.known]).all()
    there = reader.read("outputs", ["clip-05", *CLIPS[:2]], 1)
    assert np.array_equal(rows.values[rows.known], there.values)
    assert rows.tags is not None
    assert np.array_equal(rows.tags[rows.known], there.tags)
    assert np.isnan(reader.read("outputs", ["x"], 0, missing="mark").values).all()
    assert stores.reader(store, tmp_path).read("outputs", ["nobody"], 0, missing="mark").known.tolist() == [False]
    none = stores.reader(store, tmp_path, clip_ids=[])
    assert none.read("outputs", ["clip-05"], 0, missing="mark").known.tolist() == [False]


def test_a_damaged_or_lost_shard_is_named(any_store, tmp_path):
    stores.fill(any_store, stores.about(), CLIPS)
    second = object_store.join(any_store, "shards", object_store.list_names(object_store.join(any_store, "shards"))[1])
    whole = object_store.get_bytes(second)
    for content in (whole[:-1], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b""):
        object_store.put_bytes(second, content)
        reader = stores.reader(any_store, tmp_path)
        assert reader.read("outputs", CLIPS[:4], 0).known.all()
        with pytest.raises(ValueError, match=r"shards/outputs-000001-\w+\.npy: its SHA-256 differs"):
            reader.read("outputs", CLIPS[3:5], 0)
    object_store.remove_file(second)
    with pytest.raises(ValueError, match=r"shards/outputs-000001-\w+\.npy: there is no such file"):
        stores.reader(any_store, tmp_path).read("outputs", CLIPS[3:5], 0)
    stores.fill(any_store, stores.about(), CLIPS)  # makes only this shard again
    assert object_store.get_bytes(second) == whole


def test_files_that_do_not_belong_together_are_refused(store, tmp_path):
    stores.fill(store, stores.about(), CLIPS)
    manifest = object_store.join(store, "manifest.json")
    text = object_store.get_bytes(manifest).decode()
    for change, message in (
        (text.replace('"rows": 22', '"rows": 21'), "rows = 21: must be a row for each clip and view"),
        (text.replace('"clips": 3', '"clips": 4'), "do not add up to 11 clips, 4 a shard"),
        (text[:-20], "is not JSON"),
    ):
        object_store.put_text(manifest, change)
        with pytest.raises(ValueError, match=message):
            stores.reader(store, tmp_path)
    object_store.put_text(manifest, re.sub(r'"bytes": \d+', '"bytes": 300', text, count=1))
    with pytest.raises(ValueError, match=r"outputs-000000-\w+\.npy: has 288 bytes, manifest\.json says 300"):
        stores.reader(store, tmp_path).read("outputs", CLIPS, 0)
    object_store.put_text(manifest, text)
    object_store.put_text(object_store.join(store, "description.json"), "{}")
    with pytest.raises(ValueError, match=r"description\.json: "):
        stores.reader(store, tmp_path)
    with pytest.raises(ValueError, match=r"there is no description\.json, so there is no store"):
        stores.reader(str(tmp_path / "nowhere"), tmp_path)


def test_copies_of_shards_are_checked_and_made_again(s3_server, tmp_path, monkeypatch):
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="copies-of-shards")
    stores.fill("s3://copies-of-shards/store", stores.about(), CLIPS)
    expected = stores.reader("s3://copies-of-shards/store", tmp_path).read("outputs", CLIPS, 1).values
    copies = sorted((tmp_path / "copies").iterdir())
    assert len(copies) == 3
    copies[0].write_bytes(b"damaged")
    shards = object_store.list_names("s3://copies-of-shards/store/shards")
    for name in shards:
        if copies[0].name not in name:  # the other copies are read, not the store
            object_store.remove_file(f"s3://copies-of-shards/store/shards/{name}")
    again = stores.reader("s3://copies-of-shards/store", tmp_path)
    assert np.array_equal(again.read("outputs", CLIPS, 1).values, expected)


def test_a_store_of_random_logits_takes_at_most_80_bytes_a_row(tmp_path):
    """All files counted; the worst case: one view, clips named as YouTube's, values that do not compress."""
    tags = Path("workloads/data/audioset_tags.txt").read_text().splitlines()
    alphabet, rng = (
        np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")),
        np.random.default_rng(0),
    )
    clips = ["".join(name) for name in rng.choice(alphabet, (10_000, 11))]
    for per_shard in (256, 2048):
        uri = str(tmp_path / f"store-{per_shard}")
        description, plan = begin_store(
            uri, stores.about(tags=527, views=1, k=20) | {"tags": tags}, clips, clips_per_shard=per_shard
        )
        for shard in plan:
            write_shard(uri, description, shard, {"outputs": rng.normal(0, 0.05, (len(shard.clip_ids), 1, 527))})
        finish_store(uri, description, plan)
        size = sum(path.stat().st_size for path in Path(uri).rglob("*") if path.is_file())
        assert 60 < size / 10_000 < 71


def test_the_memory_of_a_reader_is_bounded(tmp_path):
    """The peak of what numpy and Python allocate: 12 bytes a clip, and the shards that threads check at once."""
    import tracemalloc

    shard_bytes, peaks = 100 * 4 * 100 * 2, []
    for count in (400, 4000):
        uri, clips = str(tmp_path / f"store-{count}"), [f"{number:05}" for number in range(count)]
        description, plan = begin_store(uri, stores.about(tags=100, views=4), clips, clips_per_shard=100)
        for shard in plan:
            write_shard(uri, description, shard, {"outputs": np.full((100, 4, 100), shard.number)})
        finish_store(uri, description, plan)
        tracemalloc.start()
        reader, rng = stores.reader(uri, tmp_path, memory_bytes=100_000), np.random.default_rng(0)
        for view in (0, 1, 2, 3) * 10:
            picked = rng.integers(count, size=32)
            values = reader.read("outputs", [clips[number] for number in picked], view).values
            assert np.array_equal(values[:, 0], picked // 100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        reader.close()
    in_flight = THREADS * 2 * shard_bytes  # as a file and as an array
    assert max(peaks) < in_flight + 4000 * 12 + 200_000
    assert sum(object_store.file_sizes(uri).values()) > 3_000_000


def test_a_view_makes_room_for_the_next(tmp_path):
    uri = str(tmp_path / "store")
    stores.fill(uri, stores.about(views=3), CLIPS)
    whole, one_view = stores.reader(uri, tmp_path), 11 * 10 * 2
    mixed = [number % 3 for number in range(11)]
    for views_that_fit in (0, 1, 2):
        reader = stores.reader(uri, tmp_path, memory_bytes=views_that_fit * one_view + 100)
        for view in (0, 1, 2, 0, mixed, 2, mixed[::-1]):
            expected = whole.read("outputs", CLIPS, view).values
            assert np.array_equal(reader.read("outputs", CLIPS, view).values, expected)
