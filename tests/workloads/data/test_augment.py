"""Views: they depend on their key only, purposes are drawn independently, and each augmentation has its effect."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from workloads.config.recipe import Augment
from workloads.data.augment import VIEW_VERSION, StoredViews, View, clean_view, draw_view, mask_mel, roll_and_amplify
from workloads.data.decode import cut_or_pad
from workloads.data.samples import FULL_SCALE
from workloads.models.front_end import build_front_end
from workloads.runtime.rng import keyed_generator, keyed_seed

FULL = Augment(roll=0.5, gain_db=12.0, mixup=0.5, mixup_alpha=0.3, mask_time=0.4, mask_mel=0.2)
MIXED = replace(FULL, mixup=1.0)

PINNED = View(
    crop=0.5441663306301999,
    roll=-0.3909435374346947,
    gain_db=-6.093062252467636,
    mix_weight=0.13162446753641646,
    time_start=0.642726335234141,
    time_width=0.2206391596359604,
    mel_start=0.7389194033296496,
    mel_width=0.17582925993092477,
)


def heard(x_T: torch.Tensor, view: View, *, length: int) -> torch.Tensor:
    crop_T = cut_or_pad(x_T, length, offset=view.crop_start(len(x_T), length=length))
    return roll_and_amplify(crop_T[None], [view])[0]


def test_a_view_has_the_same_numbers_in_every_process() -> None:
    program = (
        "from workloads.data.augment import draw_view; from workloads.config.recipe import Augment;"
        f"print(repr(draw_view({MIXED!r}, '1-100032-A', 3)))"
    )
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert fresh == repr(PINNED)
    assert draw_view(MIXED, "1-100032-A", 3) == PINNED


def test_what_is_heard_of_a_view_changes_only_with_its_version() -> None:
    """A store names VIEW_VERSION. If this fails because views are drawn or applied in another way, raise the version
    and put the new numbers here."""
    noise = np.random.default_rng(0).integers(-20_000, 20_000, 20_000).astype(np.int16)
    view = draw_view(replace(FULL, mixup=0.0), "1-100032-A", 3)
    start = view.crop_start(len(noise), length=16_000)
    x_BT = roll_and_amplify(torch.from_numpy(noise[None, start : start + 16_000]), [view], scale=1 / FULL_SCALE)
    front_end = build_front_end("logmel64", clip_rate=16_000)
    mel_MF = mask_mel(front_end(x_BT), torch.tensor([view.masks]), value=front_end.mask_value)[0].double()
    place_MF = torch.arange(64.0)[:, None] + torch.arange(100.0) / 100
    checksum = hashlib.sha256(x_BT.numpy().tobytes()).hexdigest()
    assert (VIEW_VERSION, start, checksum[:16]) == (1, 2177, "a99b6b52995a5fac")
    assert int((mel_MF == front_end.mask_value).sum()) == 2344
    assert float((mel_MF * place_MF).mean()) == pytest.approx(-28.5767, abs=1e-3)


def test_keyed_numbers_are_pinned_and_parts_of_a_key_are_separated() -> None:
    assert keyed_generator(0, "a").random(2).tolist() == [0.633168333539149, 0.13187626155259147]
    assert keyed_seed(0, "a") == 5659885417329827716
    keys = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (1, 1), (11,)]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)


def test_views_do_not_depend_on_earlier_draws() -> None:
    ids = [f"clip{number}" for number in range(20)]
    forwards = {clip_id: draw_view(FULL, clip_id, 0) for clip_id in ids}
    np.random.seed(1)
    torch.manual_seed(1)
    backwards = {clip_id: draw_view(FULL, clip_id, 0) for clip_id in reversed(ids)}
    assert forwards == backwards
    assert len(set(forwards.values())) == 20


def test_seed_clip_and_view_each_change_the_view() -> None:
    base = draw_view(FULL, "dog", 0)
    others = [draw_view(FULL, "dog", 1), draw_view(FULL, "cat", 0), draw_view(replace(FULL, view_seed=1), "dog", 0)]
    assert all(other.crop != base.crop and other.roll != base.roll for other in others)


def test_each_occurrence_of_a_clip_has_another_view() -> None:
    views = [draw_view(MIXED, "1-100032-A", 3, occurrence) for occurrence in range(4)]
    assert views[0] == PINNED
    for name in vars(PINNED):  # crop, roll, gain, weight and both masks
        assert len({getattr(view, name) for view in views}) == 4, name
    assert views[1].crop == float(keyed_generator(0, "1-100032-A", 3, "crop", 1).random())
    assert draw_view(MIXED, "1-100032-A", 4, 1) not in views


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        ("roll", ("roll",)),
        ("gain_db", ("gain_db",)),
        ("mixup", ("mix_weight",)),
        ("mask_time", ("time_start", "time_width")),
        ("mask_mel", ("mel_start", "mel_width")),
    ],
)
def test_disabling_one_augmentation_changes_no_other_draw(off: str, fields: tuple[str, ...]) -> None:
    without = draw_view(replace(MIXED, **{off: 0.0}), "dog", 7)
    neutral = {name: getattr(clean_view(), name) for name in fields}
    assert without == replace(draw_view(MIXED, "dog", 7), **neutral)


def test_the_probability_of_mixup_does_not_change_weights() -> None:
    seldom, always = replace(FULL, mixup=0.2), replace(FULL, mixup=1.0)
    pairs = [(draw_view(seldom, f"c{n}", 0), draw_view(always, f"c{n}", 0)) for n in range(200)]
    mixed = [(low, high) for low, high in pairs if low.mix_weight != 1]
    assert 20 <= len(mixed) <= 60
    assert all(low == high for low, high in mixed)


def test_draws_spread_evenly_over_their_ranges() -> None:
    views = [draw_view(FULL, f"clip{number}", 0) for number in range(2000)]

    def drawn(name: str) -> np.ndarray:
        return np.array([getattr(view, name) for view in views])

    for name, low, high in (("crop", 0, 1), ("roll", -0.5, 0.5), ("gain_db", -12, 12), ("time_width", 0, 0.4)):
        values = drawn(name)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        # four standard errors of the mean of a uniform variable
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * 2000))
    assert (drawn("time_start") + drawn("time_width")).max() <= 1
    assert (drawn("mel_start") + drawn("mel_width")).max() <= 1
    mixed = drawn("mix_weight") != 1
    assert mixed.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))
    # Beta(0.3, 0.3) has mean 1/2 and variance 1 / (4 (2 * 0.3 + 1))
    weights = drawn("mix_weight")[mixed]
    assert weights.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.15625 / mixed.sum()))
    assert weights.var() == pytest.approx(0.15625, rel=0.1)


def test_purposes_are_independent_of_each_other() -> None:
    views = [draw_view(FULL, f"clip{number}", 0) for number in range(2000)]
    table = np.array([[v.crop, v.roll, v.gain_db, v.time_start, v.time_width, v.mel_start, v.mel_width] for v in views])
    correlation = np.corrcoef(table.T) - np.eye(7)
    # a mask's start is confined by its width; all other pairs are independent
    correlation[3, 4] = correlation[4, 3] = correlation[5, 6] = correlation[6, 5] = 0
    assert np.abs(correlation).max() < 4 / np.sqrt(2000)


def test_a_longer_clip_is_cut_at_the_views_crop_and_every_start_is_possible() -> None:
    x_T = torch.arange(10.0)
    assert heard(x_T, View(), length=4).tolist() == [0, 1, 2, 3]
    assert heard(x_T, View(crop=0.5), length=4).tolist() == [3, 4, 5, 6]
    assert heard(x_T, View(crop=1 - 1e-9), length=4).tolist() == [6, 7, 8, 9]


def test_a_shorter_clip_is_padded_then_rolled_and_amplified() -> None:
    x_T = torch.tensor([1.0, 2.0, 3.0])
    assert heard(x_T, View(crop=0.9), length=5).tolist() == [1, 2, 3, 0, 0]
    assert heard(x_T, View(roll=0.4), length=5).tolist() == [0, 0, 1, 2, 3]
    assert heard(x_T, View(roll=-0.4), length=5).tolist() == [3, 0, 0, 1, 2]
    assert heard(x_T, View(gain_db=20.0), length=3).tolist() == pytest.approx([10, 20, 30])
    assert heard(x_T, View(gain_db=-20.0), length=3).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert x_T.tolist() == [1, 2, 3]


def test_the_clean_view_changes_nothing() -> None:
    x_T = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(heard(x_T, clean_view(), length=100), x_T)
    mel_BMF = torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask_mel(mel_BMF, torch.tensor([clean_view().masks]), value=-5.0), mel_BMF)


def test_masks_cover_their_shares_of_each_clip_and_leave_the_input_alone() -> None:
    mel_BMF = torch.ones(3, 20, 100)
    masks_B4 = torch.tensor([[0.2, 0.3, 0.0, 0.0], [0.0, 0.0, 0.5, 0.25], [0.9, 0.1, 0.0, 0.1]])
    masked = mask_mel(mel_BMF, masks_B4, value=-7.0)
    expected = torch.ones(3, 20, 100)
    expected[0, :, 20:50] = -7
    expected[1, 10:15, :] = -7
    expected[2, :, 90:] = -7
    expected[2, :2, :] = -7
    assert torch.equal(masked, expected)
    assert torch.equal(mel_BMF, torch.ones(3, 20, 100))


def test_the_same_masks_hide_the_same_share_at_any_resolution() -> None:
    masks_B4 = torch.tensor([[0.25, 0.25, 0.5, 0.125]])
    shares = [
        (mask_mel(torch.ones(1, m, f), masks_B4, value=0.0) == 0).float().mean() for m, f in ((64, 500), (128, 1000))
    ]
    assert shares[0] == shares[1] == pytest.approx(0.25 + 0.125 - 0.25 * 0.125)


@pytest.mark.parametrize("whole", [False, True])
def test_epochs_go_round_stored_views_but_mixtures_are_drawn_anew(whole: bool) -> None:
    augment = Augment(view_seed=5, roll=0.5, gain_db=6.0, mask_time=0.3, mixup=0.5)
    for view, occurrence in ((4, 0), (3, 1)):
        drawn = draw_view(augment, "clip", view, occurrence, stored=StoredViews(3, whole=whole))
        anew, kept = draw_view(augment, "clip", view, occurrence), draw_view(augment, "clip", 1)
        assert drawn == (replace(kept, mix_weight=anew.mix_weight) if whole else replace(anew, crop=kept.crop))
