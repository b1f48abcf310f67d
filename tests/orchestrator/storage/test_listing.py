"""Listings with ages by the store's clock, of a folder and of an object store."""

import pytest

from orchestrator.storage import listing, object_store
from orchestrator.storage.listing import list_folder


def test_files_have_ages_and_folders_are_named(storage):
    for name in ("a.json", "b/c.json", "b/d/e.json"):
        object_store.put_text(object_store.join(storage, name), "")
    top = list_folder(storage)
    assert (set(top.written), top.folders) == ({"a.json"}, {"b"})
    assert 0 <= top.age("a.json") < 60
    assert set(list_folder(storage, all_depths=True).written) == {"a.json", "b/c.json", "b/d/e.json"}
    assert set(list_folder(object_store.join(storage, "b")).written) == {"c.json"}


def test_what_does_not_exist_is_empty(storage):
    nothing = list_folder(object_store.join(storage, "nothing"))
    assert (nothing.written, nothing.folders) == ({}, set())


def test_a_listing_that_takes_several_answers_is_whole(storage, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 2)
    for number in range(5):
        object_store.put_text(object_store.join(storage, f"{number}.json"), "")
        object_store.put_text(object_store.join(storage, f"run-{number}", "recipe.json"), "")
    found = list_folder(storage)
    assert (len(found.written), len(found.folders)) == (5, 5)


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_a_bucket_that_does_not_exist_is_an_error(storage):
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        list_folder(storage.replace("bucket-", "no-bucket-"))
