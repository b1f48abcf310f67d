"""Publishing folders, locally and on S3: parts first, the marker last and only once."""

import os
import subprocess
import sys

import pytest
import torch

from orchestrator.storage import object_store, published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.data import Data
from workloads.data.manifest import read_dataset
from workloads.data.splits import split
from workloads.data.table import NoSuchTable
from workloads.runtime import checkpoint


def folder(tmp_path, step: int):
    name = f"step-{step:08d}"
    return checkpoint.write(
        tmp_path / "made" / name, tensors={"cnn": {"w": torch.full((3,), step)}}, state={"step": step}
    )


def test_a_published_folder_is_fetched_unchanged(storage, tmp_path):
    object_store.check_storage(storage)
    checkpoint_folder = folder(tmp_path, 7)
    uri = published_folders.publish(
        checkpoint_folder, object_store.join(storage, "checkpoints", checkpoint_folder.name)
    )
    back = published_folders.fetch(uri, tmp_path / "back")
    assert checkpoint.read_state(back) == {"step": 7}
    assert torch.equal(checkpoint.read_tensors(back, "cnn")["w"], torch.full((3,), 7))
    assert published_folders.list_committed(object_store.join(storage, "checkpoints")) == [checkpoint_folder.name]
    assert published_folders.publish(checkpoint_folder, uri) == uri  # publishing it again changes nothing


def test_a_folder_without_marker_is_unfinished(storage, tmp_path):
    object_store.check_storage(storage)
    checkpoint_folder = folder(tmp_path, 7)
    (checkpoint_folder / "COMMITTED.json").rename(tmp_path / "marker")
    object_store.put_text(object_store.join(storage, "checkpoints", checkpoint_folder.name, "cnn.safetensors"), "half")
    assert published_folders.list_committed(object_store.join(storage, "checkpoints")) == []
    with pytest.raises(ValueError, match="never finished"):
        published_folders.fetch(object_store.join(storage, "checkpoints", checkpoint_folder.name), tmp_path / "back")


def test_the_second_exclusive_create_fails(storage):
    object_store.check_storage(storage)
    uri = object_store.join(storage, "attempt-1")
    assert object_store.create_exclusively(uri, b"first")
    assert not object_store.create_exclusively(uri, b"second")
    assert object_store.get_bytes(uri) == b"first"


def test_storage_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        object_store.check_storage(str(tmp_path / "file" / "below"))
    with pytest.raises(ValueError, match="URI '': is empty; give a folder"):  # else the root folder
        object_store.check_storage("")


def test_a_missing_bucket_is_an_error(s3_server):
    script = "from orchestrator.storage import object_store\nobject_store.check_storage('s3://no-such-bucket/x')"
    env = {**os.environ, **s3_server.env}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert "ValueError: storage 's3://no-such-bucket/x': cannot be written" in done.stderr


def test_a_server_that_does_not_answer_may_do_so_later():
    script = """
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import Unavailable
try:
    object_store.check_storage("s3://bucket/x")
except Unavailable as error:
    print(error)
"""
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **keys})
    assert done.stdout.startswith("storage 's3://bucket/x': cannot be written (Could not connect"), done.stderr


def test_the_files_below_a_folder_are_listed_at_any_depth(storage):
    for path in ("set/b/c/2.wav", "set/b/1.wav", "set/a.csv", "set2/x.wav"):
        object_store.put_text(object_store.join(storage, path), "x")
    files = FsspecFiles()
    assert files.files_below(object_store.join(storage, "set")) == ["a.csv", "b/1.wav", "b/c/2.wav"]
    assert files.files_below(object_store.join(storage, "set/")) == ["a.csv", "b/1.wav", "b/c/2.wav"]
    with pytest.raises(FileNotFoundError):
        files.files_below(object_store.join(storage, "nowhere"))


def test_a_data_set_is_found_where_it_is_stored(storage):
    files = {
        **dict.fromkeys(("bed/a1_nohash_0.wav", "bed/a2_nohash_0.wav", "cat/a3_nohash_0.wav", "cat/.x.wav"), "x"),
        "validation_list.txt": "bed/a2_nohash_0.wav\n",
        "testing_list.txt": "cat/a3_nohash_0.wav\n",
    }
    for path, text in files.items():
        object_store.put_text(object_store.join(storage, "words", path), text)
    root = object_store.join(storage, "words")
    data = Data(format="speechcommands", root=root)
    splits = split(read_dataset(data, FsspecFiles()), data)
    paths = [clip.path for part in (splits.train, splits.val, splits.test) for clip in part]
    assert paths == ["bed/a1_nohash_0.wav", "bed/a2_nohash_0.wav", "cat/a3_nohash_0.wav"]
    with pytest.raises(NoSuchTable, match="not found; give the data set's folder"):
        read_dataset(Data(format="folders", root=root + "2"), FsspecFiles())


def test_the_identity_of_a_file_changes_with_its_content(tmp_path):
    files = FsspecFiles()
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    before = files.identity(str(path))
    assert files.open(str(path)).read() == b"one"
    path.write_bytes(b"other")
    assert files.identity(str(path)) != before
    assert files.join("s3://b/x", "y.wav") == "s3://b/x/y.wav"
    assert files.join("s3://b/x", "s3://c/y.wav") == "s3://c/y.wav"
    assert files.join("", "y.wav") == "y.wav"


def test_a_local_name_may_hold_what_looks_like_a_chain_of_uris(tmp_path, monkeypatch):
    (tmp_path / "artist::song.wav").write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    files = FsspecFiles()
    for uri in (f"{tmp_path}/artist::song.wav", f"file://{tmp_path}/artist::song.wav", "artist::song.wav"):
        assert files.open(uri).read() == b"one"
        assert files.identity(uri).startswith("3:")
    for uri in ("memory::song.wav", f"{tmp_path}/simplecache::s3:song.wav"):
        with pytest.raises(FileNotFoundError):
            files.open(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "memory://runs",  # holds a run's checkpoints for as long as the process lives
        "reference://x",
        "http://127.0.0.1/x",
        "simplecache::s3://bucket/x",
        "zip://a::file:///tmp/x.zip",
    ],
)
def test_no_other_storage_is_opened(uri):
    for call in (object_store.filesystem, object_store.check_storage, FsspecFiles().open):
        with pytest.raises(ValueError, match=r"no such storage; use a local path or s3://bucket/path"):
            call(uri)
