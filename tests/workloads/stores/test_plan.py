"""The plan of a store: the same shards for the same clips; its list of clips is small and cannot be damaged unseen."""

import numpy as np
import pytest

from workloads.stores.plan import clips_sha256, decode_clips, encode_clips, plan_shards

ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))


def test_shards_depend_on_the_clips_alone():
    plan = plan_shards(["c", "a", "e", "b", "d"], views=3, clips_per_shard=2)
    assert [(shard.number, shard.clip_ids, shard.rows) for shard in plan] == [
        *((0, ("a", "b"), 6), (1, ("c", "d"), 6), (2, ("e",), 3))
    ]
    assert plan == plan_shards(["e", "d", "c", "b", "a"], views=3, clips_per_shard=2)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "at least one clip"),
        (["b", "a", "b"], "clips that are there twice: b;"),
        (["a", "b\udc80"], r"clip 'b\\udc80': its name is no text"),
        (["a", ""], "clip '': its name is no text"),
    ],
)
def test_clips_that_cannot_be_keys_are_refused(clips, message):
    with pytest.raises(ValueError, match=message):
        plan_shards(clips, views=1, clips_per_shard=2)


def test_the_list_of_clips_comes_back_in_few_bytes():
    rng = np.random.default_rng(0)
    drawn = sorted(
        {"".join(name) for name in rng.choice(ALPHABET, (70_000, 11))}
    )  # as YouTube's: 8.25 bytes each at least
    numbered = [f"dev/audio/part-3/müsik {number:06}.wav" for number in range(70_000)]
    for ids, most in ((drawn, 8.6), (numbered, 1.5)):
        content = encode_clips(ids)
        assert len(content) / len(ids) < most
        assert content == encode_clips(ids)
        batches = list(decode_clips(content, "clips", count=len(ids), sha256=clips_sha256(ids)))
        assert len(batches) > 1
        assert [clip_id for batch in batches for clip_id in batch] == ids


def test_a_damaged_list_of_clips_is_named():
    content = encode_clips(["a", "b"])
    sha256 = clips_sha256(["a", "b"])
    other = clips_sha256(["a", "c"])
    for damaged, *expected in ((content, 2, other), (content, 3, sha256), (content[:-9], 2, sha256), (b"", 2, sha256)):
        with pytest.raises(ValueError, match=r"^store/clips\.parquet: "):
            list(decode_clips(damaged, "store/clips.parquet", count=expected[0], sha256=expected[1]))
