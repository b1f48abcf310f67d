"""Merging stores: the bytes of a store that was made at once; what does not belong together is refused."""

import pytest

from orchestrator.storage import object_store
from orchestrator.stores.merge import merge_stores
from tests import stores

CLIPS = [f"clip-{number:02}" for number in range(23)]


def content_of(uri: str) -> dict[str, bytes]:
    return {path: object_store.get_bytes(object_store.join(uri, path)) for path in object_store.file_sizes(uri)}


def test_a_merged_store_is_the_one_that_is_made_at_once(tmp_path):
    described = stores.about(views=2, k=3, embedding=5)
    parts = {"a": CLIPS[::3], "b": CLIPS[1::3], "c": CLIPS[2::3]}  # clips of all three in every shard
    for name, clips in parts.items():
        stores.fill(str(tmp_path / name), described, clips, per_shard=4 if name == "a" else 3)
    stores.fill(str(tmp_path / "whole"), described, CLIPS, per_shard=4)
    uris = [str(tmp_path / name) for name in parts]
    seen = []
    merge_stores(uris, str(tmp_path / "merged"), on_shard=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]
    assert content_of(str(tmp_path / "merged")) == content_of(str(tmp_path / "whole"))


def test_stores_that_differ_or_share_clips_are_refused(tmp_path):
    def made(name: str, clips: list[str], **changes) -> str:
        stores.fill(str(tmp_path / name), stores.about(**changes), clips)
        return str(tmp_path / name)

    first, out = made("first", CLIPS[:12]), str(tmp_path / "out")
    for name, changes, message in (
        ("tags", {"tags": 11}, r"tags\[10\] is 'tag10', expected 'no value'"),
        ("views", {"views": 3}, r"views\.count is 3, expected 2"),
        ("k", {"k": 3}, r"columns\.outputs\.layout is 'topk', expected 'dense'"),
        ("more", {"embedding": 2}, r"columns\.embedding is \{.*\}, expected none"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_stores([first, made(name, CLIPS[12:], **changes)], out)
    with pytest.raises(ValueError, match=r"1 clips are in two stores: clip-11 \(.*first and .*shared\)"):
        merge_stores([first, made("shared", CLIPS[11:])], out)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"first': clips\.count is 12, expected 23"):
        merge_stores([first, made("rest", CLIPS[12:])], first)
