"""A clip that is damaged after it was packed is replaced in training, by the same one everywhere, and recorded once."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from tests.packs import damage_clip, pack_as, write_clips
from workloads.data.augment import draw_view, roll_and_amplify
from workloads.data.batches import Batches
from workloads.data.decode import cut_or_pad
from workloads.data.prepare import PreparedData, prepare
from workloads.data.replacements import ReplacedClip
from workloads.data.shard import Shard
from workloads.runtime.opener import LocalFiles

STEPS = range(8)  # two epochs of four
SETTINGS = ["data.clip_seconds=0.5", "augment.roll=0.5", "train.shard_size=10", "data.val_share=0.2"]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    plain = load_recipe("demo", [*write_clips(tmp_path / "plain"), *SETTINGS])
    pack_as(plain, str(tmp_path / "pack"), "original")
    data = replace(plain.data, format="packed", root=str(tmp_path / "pack"), manifest="")
    return prepare(replace(plain, data=data), LocalFiles())


@pytest.fixture
def batches_of(prepared: PreparedData) -> Callable[..., Batches]:
    def make(*, loaders: int = 0) -> Batches:
        recipe = replace(prepared.recipe, train=replace(prepared.recipe.train, loaders=loaders))
        return Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe)

    return make


@pytest.fixture
def shards(batches_of: Callable[..., Batches]) -> Callable[..., list[Shard]]:
    def load(steps: range = STEPS, *, loaders: int = 0) -> list[Shard]:
        batches = batches_of(loaders=loaders)
        with batches.loaded_ahead(steps, range(1), torch.device("cpu")):
            shards = []
            for step in steps:
                shard = batches.shard(step, 0)
                shards.append(replace(shard, x_BT=shard.x_BT.clone(), _mels={}))
            return shards

    return load


def test_another_clip_takes_the_place_of_a_damaged_one(
    prepared: PreparedData, batches_of: Callable[..., Batches], shards: Callable[..., list[Shard]]
) -> None:
    clips = {clip.clip_id: clip for clip in prepared.splits.train}
    whole = shards()
    lost = whole[0].clip_ids[3]
    damage_clip(prepared, lost)
    found = shards()
    places = [(step, row) for step, shard in enumerate(whole) for row, key in enumerate(shard.keys) if key[0] == lost]
    assert len(places) == 2, "once in each epoch"
    (other,) = {found[step].keys[row].clip_id for step, row in places}
    assert other != lost
    for step, (before, after) in enumerate(zip(whole, found, strict=True)):
        for row, (key, new) in enumerate(zip(before.keys, after.keys, strict=True)):
            if (step, row) not in places:
                assert new == key
                assert torch.equal(after.x_BT[row], before.x_BT[row])
                continue
            assert new == key._replace(clip_id=other)
            view, length = draw_view(prepared.recipe.augment, *new), after.x_BT.shape[1]
            x_T = prepared.cache.load(other)
            crop_T = cut_or_pad(x_T, length, offset=view.crop_start(len(x_T), length=length))
            assert torch.equal(after.x_BT[row], roll_and_amplify(crop_T[None], [view])[0])
            label_C = torch.from_numpy(prepared.dataset.targets([clips[other]])[0])
            assert torch.equal(after.y_BC[row], label_C)
    for loaders, steps in ((2, STEPS), (1, range(places[0][0], 8)), (0, range(places[1][0], 8))):
        for shard, expected in zip(shards(steps, loaders=loaders), found[steps.start :], strict=True):
            assert shard.keys == expected.keys
            assert torch.equal(shard.x_BT, expected.x_BT)
            assert torch.equal(shard.y_BC, expected.y_BC)
    first, second = (step for step, _ in places)
    assert_recorded_once([batches_of() for _ in range(3)], first, second, clip_id=lost, by=other)


def assert_recorded_once(workers: list[Batches], first: int, second: int, *, clip_id: str, by: str) -> None:
    """By three workers, of which one reads the clip twice, one the second time only, and one never."""
    values: list[list[ReplacedClip]] = []
    for batches, steps in zip(workers, ([second], [first, second], []), strict=True):
        for step in steps:
            batches.shard(step, 0)
        assert batches.replacements.unrecorded(lambda own: values.append(own) or []) == []
    (recorded,) = workers[2].replacements.unrecorded(lambda _: values)
    assert recorded[:2] == (first, clip_id)
    assert recorded.by == by
    assert re.fullmatch(r"its bytes in 0000\d\.tar differ from their checksum", recorded.reason)
    assert workers[2].replacements.unrecorded(lambda _: values) == []
    workers[0].replacements.mark_recorded([clip_id])
    assert workers[0].replacements.unrecorded(lambda _: values) == []


def test_where_every_clip_is_damaged_training_ends(prepared: PreparedData, shards: Callable[..., list[Shard]]) -> None:
    for clip in prepared.splits.train:
        damage_clip(prepared, clip.clip_id)
    with pytest.raises(ValueError, match=r"cannot be used any more: .* and so are the clips for its place"):
        shards()


def test_a_clip_that_is_scored_is_not_replaced(prepared: PreparedData) -> None:
    lost = prepared.splits.test[0].clip_id
    damage_clip(prepared, lost)
    with pytest.raises(ValueError, match=f"clip {lost} cannot be used any more: .*`antiphon data verify` names"):
        prepared.cache.load(lost)
