"""`antiphon store`: info, verify, merge and export, on a store of two columns."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests import stores

CLIPS = [f"clip-{number:02}" for number in range(11)]


@pytest.fixture
def store(tmp_path: Path) -> str:
    stores.fill(str(tmp_path / "store"), stores.about(k=3, embedding=6), CLIPS)
    return str(tmp_path / "store")


def test_info_counts_every_byte(store, antiphon):
    found = json.loads(antiphon("store", "info", store, "--json").out)
    size = sum(path.stat().st_size for path in Path(store).rglob("*") if path.is_file())
    expected = {"rows": 22, "clips": 11, "views": 2, "k": 3, "tags": 10, "kind": "logits", "teachers": ["cnn"]}
    assert {key: found[key] for key in expected} == expected
    assert found["bytes"] == size
    assert found["bytes_per_row"] == round(size / 22, 2)
    told = antiphon("store", "info", store).out
    assert "22 rows: 11 clips in 2 views, 3 shards" in told
    assert "column outputs: logits, top 3 of 10, float16, of cnn" in told
    assert "views of 2 s at 16000 Hz, version 1: view_seed 3, roll 0.5" in told


def test_verify_names_what_is_damaged(store, antiphon):
    whole = antiphon("store", "verify", store, "--json")
    assert (whole.code, json.loads(whole.out)) == (0, {"shards": 3, "rows": 22, "damaged": [], "foreign": []})
    damaged, lost = (
        next((Path(store) / "shards").glob(f"{name}-*")) for name in ("outputs-000001", "embedding-000002")
    )
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    lost.rename(Path(store) / "shards" / "other.npy")
    found = antiphon("store", "verify", store, "--json")
    report = json.loads(found.out)
    assert found.code == 1
    assert [name in problem for name, problem in zip((damaged.name, lost.name), report["damaged"], strict=True)] == [
        True
    ] * 2
    assert report["foreign"] == ["shards/other.npy"]
    told = antiphon("store", "verify", store)
    assert told.code == 1
    assert "3 shards, 22 rows, 2 damaged files" in told.out
    assert "1 files are not of the store: shards/other.npy" in told.err


def test_verify_goes_on_after_files_that_cannot_be_read(store, antiphon):
    first = sorted((Path(store) / "shards").glob("outputs-*"))[0]
    first.unlink()
    first.symlink_to(first)
    clips = Path(store) / "clips.parquet"
    clips.write_bytes(clips.read_bytes()[:100])
    found = antiphon("store", "verify", store, "--json")
    report = json.loads(found.out)
    assert (found.code, report["shards"], report["rows"]) == (1, 3, 22)
    assert [name in problem for name, problem in zip((clips.name, first.name), report["damaged"], strict=True)] == [
        True
    ] * 2


def test_an_unfinished_store_and_none_are_mistakes(store, tmp_path, antiphon):
    (Path(store) / "manifest.json").unlink()
    for command in ("info", "verify"):
        unfinished = antiphon("store", command, store)
        assert (unfinished.code, "so it is unfinished" in unfinished.err) == (2, True)
        assert "so there is no store" in antiphon("store", command, tmp_path / "nowhere").err
        assert "no such storage; use a local path or s3://" in antiphon("store", command, "ftp://host/store").err
    (Path(store) / "manifest.json").mkdir()
    assert "manifest.json: is a folder, where a file of a store is expected" in antiphon("store", "info", store).err


def test_merge_makes_one_store(store, tmp_path, antiphon):
    stores.fill(str(tmp_path / "more"), stores.about(k=3, embedding=6), ["clip-90", "a"])
    merged = antiphon("store", "merge", store, tmp_path / "more", "--out", tmp_path / "merged", "--json")
    assert json.loads(merged.out) == {"store": str(tmp_path / "merged"), "rows": 26, "shards": 4}
    assert json.loads(antiphon("store", "verify", tmp_path / "merged", "--json").out)["damaged"] == []
    assert antiphon("store", "merge", store, "--out", tmp_path / "x").code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("lost", [False, True])
def test_a_damaged_shard_ends_export_with_how_to_mend_it(store, tmp_path, antiphon, lost):
    """It is nobody's mistake: exit code 1."""
    shard = next((Path(store) / "shards").glob("outputs-000001-*"))
    content = shard.read_bytes()
    shard.unlink() if lost else shard.write_bytes(content[:-1] + b"x")
    done = antiphon("store", "export", store, tmp_path / "a.parquet")
    assert done.code == 1
    assert f"failed: {shard}" in done.err
    assert "Shard 1 of 3, column outputs: copy that file again from another copy of the store" in done.err
    assert f"antiphon store verify {store}" in done.err
    assert not (tmp_path / "a.parquet").exists()


def test_export_is_a_table_that_people_read(store, tmp_path, antiphon):
    exported = antiphon("store", "export", store, tmp_path / "table.parquet", "--json")
    assert json.loads(exported.out) == {"file": str(tmp_path / "table.parquet"), "rows": 22}
    table = pyarrow.parquet.read_table(tmp_path / "table.parquet")
    rows = table.to_pylist()
    assert [(row["clip_id"], row["view"]) for row in rows] == [(clip_id, view) for clip_id in CLIPS for view in (0, 1)]
    for row in rows:
        drawn = stores.outputs_of(row["clip_id"], stores.about(k=3, embedding=6))
        values = drawn["outputs"][row["view"]].astype(np.float16)
        best = np.argsort(-values)[:3]
        assert row["outputs.tags"] == [f"tag{tag}" for tag in best]
        assert row["outputs.values"] == values[best].tolist()
        assert row["embedding"] == drawn["embedding"][row["view"]].astype(np.float16).tolist()
    assert json.loads(table.schema.metadata[b"antiphon"])["views"]["count"] == 2
    for out in ("table.npz", "s3://bucket/table.parquet"):
        assert "must be a local file that ends in .parquet" in antiphon("store", "export", store, out).err
