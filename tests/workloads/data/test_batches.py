"""Batches: their content depends on recipe, step and index only; mixup mixes audio and labels, masks cover log-mels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from workloads.config.architectures import ViT
from workloads.config.data import Data
from workloads.config.recipe import Augment, FrontEnd, Model, Recipe, Train
from workloads.config.schedules import Mutual
from workloads.data.augment import View, draw_view, mask_mel, roll_and_amplify
from workloads.data.batches import Batches, evaluation_batches, sampling_probabilities, window_starts
from workloads.data.cache import CachedClip, ClipCache
from workloads.data.clips import Clip, Dataset
from workloads.data.decode import cut_or_pad
from workloads.data.manifest import read_dataset
from workloads.data.shard import Shard, ViewKey
from workloads.models.front_end import build_front_end
from workloads.runtime.opener import LocalFiles

AUGMENT = Augment(roll=0.5, gain_db=6.0, mask_time=0.3, mask_mel=0.3)
MIXED = replace(AUGMENT, mixup=0.7)


def make_recipe(
    data: Data, *, augment: Augment = AUGMENT, seed: int = 0, shard_size: int = 8, shards: int = 2
) -> Recipe:
    return Recipe(
        name="test",
        data=data,
        augment=augment,
        models={"ast": Model(arch=ViT(family="vit"), front_end=FrontEnd(kind="logmel64"))},
        schedule=Mutual(kind="mutual", burn_in=0, steps=1),
        train=Train(seed=seed, shard_size=shard_size, shards=shards),
    )


@pytest.fixture(scope="module")
def real(esc10: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, ClipCache, Data]:
    """Forty real recordings, four of each tag, and the cache that holds them; clips of 2 s are cut from 5 s."""
    data = Data(format="esc50", root=str(esc10), clip_seconds=2.0)
    dataset = read_dataset(data, LocalFiles())
    by_tag: dict[tuple[str, ...], list[Clip]] = {}
    for clip in dataset.clips:
        by_tag.setdefault(clip.tags, []).append(clip)
    dataset = replace(dataset, clips=tuple(clip for clips in by_tag.values() for clip in clips[:4]))
    cache = ClipCache(tmp_path_factory.mktemp("cache"), rate=16_000, limit_gb=1.0)
    assert cache.prepare(dataset.clips, data, LocalFiles()) == []
    return dataset, cache, data


@pytest.fixture
def build(real: tuple[Dataset, ClipCache, Data]) -> Callable[..., Batches]:
    dataset, cache, data = real

    def build_batches(**settings: object) -> Batches:
        return Batches(dataset.clips, dataset, cache, make_recipe(data, **settings))

    return build_batches


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, ClipCache, Data]:
    """A hundred clips of noise, ten of a rare tag and ninety of a common one; each is cut from twice its length."""
    folder = tmp_path_factory.mktemp("unequal")
    data = Data(format="manifest", root=str(folder), manifest="unused.csv", clip_seconds=0.1, sampling="balanced")
    clips = tuple(Clip(f"c{n:02}", f"{n}.wav", ("rare" if n < 10 else "common",), 1, str(n)) for n in range(100))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (100, 3200))
    for clip, x_T in zip(clips, noise, strict=True):
        soundfile.write(folder / clip.path, x_T, 16_000)
    cache = ClipCache(folder / "cache", rate=16_000, limit_gb=1.0)
    assert cache.prepare(clips, data, LocalFiles()) == []
    return Dataset(clips, ("common", "rare"), "single"), cache, data


def heard(x_T: torch.Tensor, view: View, *, length: int) -> torch.Tensor:
    crop_T = cut_or_pad(x_T, length, offset=view.crop_start(len(x_T), length=length))
    return roll_and_amplify(crop_T[None], [view])[0]


def same(a: Shard, b: Shard) -> bool:
    tensors = zip((a.x_BT, a.y_BC, a.masks_B4), (b.x_BT, b.y_BC, b.masks_B4), strict=True)
    return a.clip_ids == b.clip_ids and all(torch.equal(one, other) for one, other in tensors)


def test_a_shard_does_not_depend_on_the_worker_or_on_the_order_of_loading(build: Callable[..., Batches]) -> None:
    one_worker, other_worker = build(augment=MIXED), build(augment=MIXED)
    halves = [one_worker.shard(step, index) for step in range(4) for index in range(2)]
    keys = [(step, index) for step in range(4) for index in range(2)]
    for number in (5, 0, 7, 3, 2, 6, 1, 4):
        assert same(halves[number], other_worker.shard(*keys[number]))


def test_two_shards_of_8_are_the_halves_of_one_of_16(build: Callable[..., Batches]) -> None:
    halves, whole = build(), build(shard_size=16, shards=1)
    for step in (0, 1, 2, 5):
        first, second, batch = halves.shard(step, 0), halves.shard(step, 1), whole.shard(step, 0)
        assert first.clip_ids + second.clip_ids == batch.clip_ids
        assert torch.equal(torch.cat((first.x_BT, second.x_BT)), batch.x_BT)
        assert torch.equal(torch.cat((first.y_BC, second.y_BC)), batch.y_BC)


def test_an_epoch_has_every_clip_at_most_once_and_drops_the_incomplete_batch(build: Callable[..., Batches]) -> None:
    batches = build()
    assert batches.steps_per_epoch == 2, "40 clips in batches of 16"
    epochs = []
    for epoch in range(3):
        shards = [batches.shard(2 * epoch + step, index) for step in range(2) for index in range(2)]
        assert {key.view for shard in shards for key in shard.keys} == {epoch}
        ids = [clip_id for shard in shards for clip_id in shard.clip_ids]
        assert len(set(ids)) == 32
        epochs.append(ids)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_of_a_run_changes_the_order_and_no_view(build: Callable[..., Batches]) -> None:
    by_seed = []
    for seed in (0, 1):
        shard = build(seed=seed, shard_size=40, shards=1).shard(0, 0)
        by_seed.append(dict(zip(shard.clip_ids, shard.x_BT, strict=True)))
    assert list(by_seed[0]) != list(by_seed[1])
    assert all(torch.equal(x_T, by_seed[1][clip_id]) for clip_id, x_T in by_seed[0].items())


def test_a_shard_holds_the_views_of_its_clips(
    build: Callable[..., Batches], real: tuple[Dataset, ClipCache, Data]
) -> None:
    dataset, cache, _ = real
    shard = build().shard(2, 1)
    for row, clip_id in enumerate(shard.clip_ids):
        view = draw_view(AUGMENT, clip_id, 1)
        assert torch.equal(shard.x_BT[row], heard(cache.load(clip_id), view, length=32_000))
        assert shard.masks_B4[row].tolist() == pytest.approx(view.masks)
        (clip,) = [clip for clip in dataset.clips if clip.clip_id == clip_id]
        assert torch.equal(shard.y_BC[row], torch.from_numpy(dataset.targets([clip])[0]))


def test_waveform_mixup_mixes_views_and_labels_within_the_shard(build: Callable[..., Batches]) -> None:
    mixed, plain = build(augment=MIXED).shard(0, 1), build().shard(0, 1)
    assert mixed.clip_ids == plain.clip_ids
    assert mixed.mixture is not None
    for row, key in enumerate(mixed.keys):
        weight, partner = draw_view(MIXED, *key).mix_weight, mixed.mixture.partner_B[row]
        assert mixed.mixture.weight_B[row] == pytest.approx(weight)
        assert (partner == row) == (weight == 1)
        expected_T = weight * plain.x_BT[row] + (1 - weight) * plain.x_BT[partner]
        assert torch.allclose(mixed.x_BT[row], expected_T, atol=1e-6)
        expected_C = weight * plain.y_BC[row] + (1 - weight) * plain.y_BC[partner]
        assert torch.allclose(mixed.y_BC[row], expected_C, atol=1e-6)


def test_partners_are_a_permutation_without_fixed_points_keyed_by_step_and_shard(build: Callable[..., Batches]) -> None:
    batches = build(augment=Augment(mixup=1.0))
    partners = []
    for step in range(20):
        for index in range(2):
            mixture = batches.shard(step, index).mixture
            assert mixture is not None
            partners.append(mixture.partner_B.tolist())
    assert all(sorted(partner) == list(range(8)) for partner in partners)
    assert all(partner[row] != row for partner in partners for row in range(8))
    assert len({tuple(partner) for partner in partners}) == 40
    num_from_1 = Counter(partner[0] for partner in partners)
    assert set(num_from_1) == set(range(1, 8)), "every other clip comes up as the first one's partner"


def test_mixup_needs_another_clip_in_the_shard(real: tuple[Dataset, ClipCache, Data]) -> None:
    with pytest.raises(ValueError, match=r"augment.mixup: a clip is mixed with another one of its shard"):
        make_recipe(real[2], augment=MIXED, shard_size=1)


def test_a_shard_says_what_it_was_made_from(build: Callable[..., Batches]) -> None:
    batches = build(augment=MIXED)
    shard = batches.shard(3, 1)
    assert shard.keys == tuple(ViewKey(clip_id, 1, 0) for clip_id in batches.clip_ids(3)[8:])


def test_mel_mixup_mixes_log_mels_before_the_masks(build: Callable[..., Batches]) -> None:
    shard, plain = build(augment=replace(MIXED, mixup_on="mel")).shard(0, 0), build().shard(0, 0)
    front_end = build_front_end("logmel64", clip_rate=16_000)
    mel_BMF = front_end(plain.x_BT)
    assert torch.equal(shard.x_BT, plain.x_BT), "waveforms are not mixed"
    assert shard.mixture is not None
    assert (shard.mixture.weight_B < 1).any()
    weight_B11 = shard.mixture.weight_B[:, None, None]
    expected_BMF = weight_B11 * mel_BMF + (1 - weight_B11) * mel_BMF[shard.mixture.partner_B]
    expected_BMF = mask_mel(expected_BMF, shard.masks_B4, value=front_end.mask_value)
    assert torch.allclose(shard.mel(front_end), expected_BMF, atol=1e-4)
    assert torch.equal(shard.y_BC, build(augment=MIXED).shard(0, 0).y_BC)


def test_models_with_the_same_kind_of_front_end_share_one_computation(build: Callable[..., Batches]) -> None:
    shard = build().shard(0, 0)
    first, twin, other = (build_front_end(kind, clip_rate=16_000) for kind in ("logmel64", "logmel64", "kaldi128"))
    mel_BMF = shard.mel(first)
    assert shard.mel(twin) is mel_BMF
    assert shard.mel(other).shape[1] == 128
    assert (mel_BMF == first.mask_value).any()
    assert not mel_BMF.requires_grad


@pytest.mark.parametrize("mixup_on", ["waveform", "mel"])
def test_the_clean_view_keeps_crop_and_mixture_and_nothing_else(build: Callable[..., Batches], mixup_on: str) -> None:
    noisy = build(augment=replace(MIXED, mixup_on=mixup_on)).shard(1, 0, with_clean_view=True)
    quiet = build(augment=Augment(mixup=0.7, mixup_on=mixup_on)).shard(1, 0)
    clean = noisy.clean()
    assert same(clean, quiet)
    assert not same(noisy, clean)
    assert clean.clean() is clean
    front_end = build_front_end("logmel64", clip_rate=16_000)
    assert torch.equal(clean.mel(front_end), quiet.mel(front_end))


def test_a_shard_knows_the_padding_of_short_clips(real: tuple[Dataset, ClipCache, Data]) -> None:
    """Clips of 5 s in batches of 8 s: sound and padding roll together, a mixture has sound where either clip has."""
    dataset, cache, data = real
    longer = replace(data, clip_seconds=8.0)

    def shard_with(augment: Augment) -> Shard:
        return Batches(dataset.clips, dataset, cache, make_recipe(longer, augment=augment, shards=1)).shard(0, 0)

    ast, other = (build_front_end(kind, clip_rate=16_000) for kind in ("kaldi128", "logmel64"))
    plain, rolled = shard_with(Augment()), shard_with(Augment(roll=0.5))
    samples_B = torch.tensor([len(cache.load(clip_id)) for clip_id in plain.clip_ids])
    sound_BT, rolled_BT = plain.sound(ast), rolled.sound(ast)
    assert sound_BT is not None
    assert rolled_BT is not None
    assert plain.sound(other) is None, "it hears padding, so nobody asks where it is"
    assert torch.equal(sound_BT, torch.arange(128_000) < samples_B[:, None])
    shifts = [round(draw_view(Augment(roll=0.5), clip_id, 0).roll * 128_000) for clip_id in rolled.clip_ids]
    assert len(set(shifts)) == 8
    assert torch.equal(rolled_BT, torch.stack([row.roll(shift) for row, shift in zip(sound_BT, shifts, strict=True)]))
    assert (rolled.x_BT[~rolled_BT] == 0).all()
    mixed = shard_with(Augment(roll=0.5, mixup=1.0))
    mixed_BT = mixed.sound(ast)
    assert mixed_BT is not None
    assert (mixed_BT.sum(1) > samples_B).any()
    assert torch.equal(mixed_BT, mixed_BT | rolled_BT)
    assert (mixed.x_BT[~mixed_BT] == 0).all()
    in_mels = shard_with(Augment(roll=0.5, mixup=1.0, mixup_on="mel"))
    assert torch.equal(in_mels.sound(ast), rolled_BT), "the partner is another waveform"
    assert in_mels.mel(ast).shape == (8, 128, ast.frames(8.0))
    unpadded = Batches(dataset.clips, dataset, cache, make_recipe(data, augment=MIXED, shards=1)).shard(0, 0)
    assert unpadded.sound_B2 is None
    assert unpadded.sound(ast) is None


def test_moving_a_shard_to_a_device_moves_all_its_tensors(build: Callable[..., Batches]) -> None:
    moved = build(augment=replace(MIXED, mixup_on="mel")).shard(0, 0, with_clean_view=True).to("meta")
    tensors = [moved.x_BT, moved.y_BC, moved.known_BC, moved.masks_B4, moved.clean().x_BT]
    assert moved.mixture is not None
    assert {tensor.device.type for tensor in [*tensors, *vars(moved.mixture).values()]} == {"meta"}


def test_fewer_clips_than_a_batch_is_refused(build: Callable[..., Batches]) -> None:
    with pytest.raises(ValueError, match=r"train.shard_size x train.shards = 42.*only 40"):
        build(shard_size=21, shards=2)


def test_balanced_sampling_draws_rare_tags_as_often_as_common_ones(unequal: tuple[Dataset, ClipCache, Data]) -> None:
    """A tag with 10 clips and one with 90: each clip of the rare one must come up nine times as often."""
    dataset, cache, data = unequal
    batches = Batches(dataset.clips, dataset, cache, make_recipe(data, augment=Augment(), shard_size=50, shards=1))
    assert batches.steps_per_epoch == 2
    drawn = Counter(clip_id for step in range(40) for clip_id in batches.shard(step, 0).clip_ids)
    rare = sum(drawn[f"c{n:02}"] for n in range(10))
    # 2000 draws, a fair coin each: four standard errors
    assert rare == pytest.approx(1000, abs=4 * np.sqrt(2000 / 4))


@pytest.mark.parametrize("labelled", [True, False])
def test_balanced_sampling_draws_clips_without_tags_as_one_more_tag(
    unequal: tuple[Dataset, ClipCache, Data], labelled: bool
) -> None:
    dataset, cache, data = unequal
    clips = tuple(replace(clip, tags=(), labelled=labelled) if n < 40 else clip for n, clip in enumerate(dataset.clips))
    dataset = Dataset(clips, ("common",), "multi")
    batches = Batches(clips, dataset, cache, make_recipe(data, augment=Augment(), shard_size=50, shards=1))
    drawn = Counter(clip_id for step in range(40) for clip_id in batches.shard(step, 0).clip_ids)
    untagged = sum(drawn[f"c{n:02}"] for n in range(40))
    assert untagged == pytest.approx(1000, abs=4 * np.sqrt(2000 / 4))


@pytest.mark.parametrize("at_once", [7, 64, 4096])
def test_the_probabilities_are_those_of_the_dense_formula_bit_for_bit(at_once: int) -> None:
    """527 tags, 300 clips with 0 to 9 of them, every seventh not labelled, every fifth with tags known to be absent."""
    random = np.random.default_rng(0)
    tags = tuple(f"tag{n:03}" for n in range(527))
    clips = []
    for number in range(300):
        own = tuple(tags[column] for column in sorted(set((527 * random.random(number % 10) ** 3).astype(int))))
        clip = Clip(f"c{number:03}", "", own, 1, "", absent=("tag526",) if number % 5 == 0 else None)
        clips.append(replace(clip, tags=(), absent=None, labelled=False) if number % 7 == 0 else clip)
    dataset = Dataset(tuple(clips), tags, "multi", not_in_data=("tag500",))
    y_NC = torch.from_numpy(dataset.targets(clips)).double().nan_to_num().numpy()
    y_NC = np.column_stack((y_NC, ~y_NC.any(axis=1)))
    weight_N = (y_NC / y_NC.sum(axis=0).clip(min=1)).sum(axis=1)
    found_N = sampling_probabilities(clips, dataset, at_once=at_once)
    assert len(set(found_N)) > 100
    np.testing.assert_array_equal(found_N, weight_N / weight_N.sum())


def test_a_clip_that_is_drawn_again_has_another_view(unequal: tuple[Dataset, ClipCache, Data]) -> None:
    """Two shards, two steps an epoch: occurrences are counted over the whole epoch."""
    dataset, cache, data = unequal
    batches = Batches(dataset.clips, dataset, cache, make_recipe(data, shard_size=25))
    num_repeated = 0
    for epoch in range(2):
        seen: Counter[str] = Counter()
        for step in (2 * epoch, 2 * epoch + 1):
            views = []
            for clip_id in batches.clip_ids(step):
                views.append(draw_view(AUGMENT, clip_id, epoch, seen[clip_id]))
                num_repeated += seen[clip_id] > 0
                seen[clip_id] += 1
            ids = batches.clip_ids(step)
            waveforms = [heard(cache.load(one), view, length=1600) for one, view in zip(ids, views, strict=True)]
            shards = [batches.shard(step, index) for index in range(2)]
            assert torch.equal(torch.cat([shard.x_BT for shard in shards]), torch.stack(waveforms))
            masks_B4 = torch.cat([shard.masks_B4 for shard in shards])
            assert torch.equal(masks_B4, torch.tensor([view.masks for view in views]))
            assert len({tuple(masks) for masks in masks_B4.tolist()}) == 50, "no view occurs twice"
    assert num_repeated > 50


def test_repeated_draws_do_not_depend_on_the_worker_either(unequal: tuple[Dataset, ClipCache, Data]) -> None:
    dataset, cache, data = unequal
    halves, whole = (
        Batches(dataset.clips, dataset, cache, make_recipe(data, shard_size=size, shards=50 // size))
        for size in (25, 50)
    )
    for step in (3, 0, 2):
        batch = whole.shard(step, 0, with_clean_view=True)
        parts = [halves.shard(step, index, with_clean_view=True) for index in (1, 0)][::-1]
        assert torch.equal(torch.cat([part.x_BT for part in parts]), batch.x_BT)
        assert torch.equal(torch.cat([part.masks_B4 for part in parts]), batch.masks_B4)
        assert torch.equal(torch.cat([part.clean().x_BT for part in parts]), batch.clean().x_BT)


@pytest.mark.parametrize("mixup_on", ["waveform", "mel"])
def test_each_clip_is_read_once_whatever_its_views(
    unequal: tuple[Dataset, ClipCache, Data], monkeypatch: pytest.MonkeyPatch, mixup_on: str
) -> None:
    """The clean view has the same crop and mixture; roll, gain or a mask make it another view."""
    dataset, cache, data = unequal
    loaded: list[str] = []
    load_part = ClipCache.load_part

    def counted(cache: ClipCache, entry: CachedClip, *arguments: object, **options: object) -> int:
        loaded.append(entry.clip.clip_id)
        return load_part(cache, entry, *arguments, **options)

    monkeypatch.setattr(ClipCache, "load_part", counted)
    front_end = build_front_end("logmel64", clip_rate=16_000)
    plain = Augment(mixup=0.7, mixup_on=mixup_on)
    others = [{"roll": 0.1}, {"gain_db": 1.0}, {"mask_time": 0.1}, {"mask_mel": 0.1}]
    for augment, is_clean in [(plain, True), *((replace(plain, **other), False) for other in others)]:
        recipe = make_recipe(data, augment=augment, shard_size=50, shards=1)
        loaded.clear()
        shard = Batches(dataset.clips, dataset, cache, recipe).shard(0, 0, with_clean_view=True)
        clean = shard.clean()
        assert loaded == list(shard.clip_ids)
        assert (clean is shard) == is_clean
        assert (clean.mel(front_end) is shard.mel(front_end)) == is_clean


@pytest.mark.parametrize(
    ("samples", "starts"), [(3, [0]), (10, [0]), (11, [0, 1]), (20, [0, 10]), (25, [0, 10, 15]), (30, [0, 10, 20])]
)
def test_windows_cover_a_recording_and_the_last_one_ends_with_it(samples: int, starts: list[int]) -> None:
    assert window_starts(samples, 10, "windows") == starts
    assert window_starts(samples, 10, "start") == [0]


def test_evaluation_hears_all_of_a_longer_clip_in_windows_without_augmentation(
    real: tuple[Dataset, ClipCache, Data],
) -> None:
    """Recordings of 5 s in windows of 2 s: at 0 and 2 s, and the last 2 s."""
    dataset, cache, data = real
    clips = dataset.clips[10:14]
    batches = list(evaluation_batches(clips, dataset, cache, data, at_once=8))
    assert [len(rows) for rows, _ in batches] == [8, 4]
    assert [row for rows, _ in batches for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    keys = [key for _, shard in batches for key in shard.keys]
    assert keys == [ViewKey(clip.clip_id, 0, 0) for clip in clips for _ in range(3)]
    x_BT = torch.cat([shard.x_BT for _, shard in batches])
    x_T = cache.load(clips[1].clip_id)
    assert torch.equal(x_BT[3:6], torch.stack([x_T[:32_000], x_T[32_000:64_000], x_T[-32_000:]]))
    y_BC = torch.cat([shard.y_BC for _, shard in batches])
    assert torch.equal(y_BC, torch.from_numpy(dataset.targets(clips)).repeat_interleave(3, 0))
    assert not any(shard.masks_B4.any() for _, shard in batches)


def test_evaluation_hears_the_start_only_where_the_recipe_says_so_and_pads_short_clips(
    real: tuple[Dataset, ClipCache, Data],
) -> None:
    dataset, cache, data = real
    clips = dataset.clips[10:26]
    ((rows, shard),) = evaluation_batches(clips, dataset, cache, replace(data, long_clips="start"), at_once=16)
    assert rows == list(range(16))
    assert torch.equal(shard.x_BT[7], cache.load(clips[7].clip_id)[:32_000])
    ((rows, padded),) = evaluation_batches(clips, dataset, cache, replace(data, clip_seconds=8.0), at_once=16)
    assert rows == list(range(16))
    assert padded.sound_B2 is not None
    assert padded.sound_B2[7].tolist() == [0, len(cache.load(clips[7].clip_id))]
