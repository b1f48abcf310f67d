"""Partners of stored mixtures: keyed, never a clip itself, and heard only where they train."""

from collections import Counter

import torch

from workloads.config.recipe import Augment
from workloads.data.augment import draw_partner, draw_view
from workloads.data.shard import Shard, ViewKey
from workloads.data.stored_mixtures import StoredMixtures, mix_with_partners

STORE = [f"clip-{number:03}" for number in range(200)]
TRAIN = [clip_id for number, clip_id in enumerate(STORE) if number % 5]
ALWAYS, HALF = Augment(view_seed=4, mixup=1.0, mixup_alpha=2.0), Augment(view_seed=4, mixup=0.5, mixup_alpha=2.0)


def test_partners_are_evenly_drawn_and_others():
    drawn = [draw_partner(ALWAYS, STORE[7], view, place=7, clips=10) for view in range(4000)]
    counts = Counter(drawn)
    assert 7 not in counts
    assert len(counts) == 9
    assert all(abs(count - 4000 / 9) < 5 * (4000 / 9) ** 0.5 for count in counts.values())


def test_a_clip_is_its_own_partner_exactly_where_its_view_is_not_mixed():
    weights = [draw_view(HALF, STORE[3], view).mix_weight for view in range(40)]
    partners = [draw_partner(HALF, STORE[3], view, place=3, clips=200) for view in range(40)]
    assert [partner == 3 for partner in partners] == [weight == 1.0 for weight in weights]
    assert 8 < weights.count(1.0) < 32


def test_views_with_clips_that_do_not_train_are_skipped():
    mixtures = StoredMixtures(ALWAYS, 6, TRAIN, STORE)
    skipped = 0
    for row in range(len(TRAIN)):
        view, partner = mixtures.heard(row, 2)
        place = draw_partner(ALWAYS, TRAIN[row], view, place=STORE.index(TRAIN[row]), clips=200)
        assert STORE[place] == TRAIN[partner]
        passed = [mixtures.partner(row, number % 6) for number in range(2, 2 + (view - 2) % 6)]
        assert passed == [-1] * len(passed)
        skipped += bool(passed)
    assert 10 < skipped < 60, "a fifth of the partners does not train"
    assert StoredMixtures(HALF, 6, TRAIN, STORE).without_views() == []
    lost = StoredMixtures(ALWAYS, 1, TRAIN, STORE).without_views()
    assert lost == [clip_id for row, clip_id in enumerate(TRAIN) if mixtures.partner(row, 0) < 0]


def test_waveforms_are_mixed_with_those_of_the_second_half_and_both_sounds_are_heard():
    x_BT = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0], [3.0, 0.0, 1.0], [8.0, 8.0, 8.0]])
    views = [draw_view(ALWAYS, STORE[row], 0) for row in range(2)]
    expected = [
        [view.mix_weight * a + (1 - view.mix_weight) * b for a, b in zip(*both, strict=True)]
        for view, both in zip(views, ((x_BT[0], x_BT[2]), (x_BT[1], x_BT[3])), strict=True)
    ]
    torch.testing.assert_close(mix_with_partners(x_BT, views), torch.tensor(expected))

    class HearsNoPadding:
        kind, mask_value, hears_padding = "any", 0.0, False

    nothing = torch.empty(2, 0)
    shard = Shard(
        keys=(ViewKey("a", 0, 0), ViewKey("b", 0, 0)),
        x_BT=x_BT[:2],
        y_BC=nothing,
        known_BC=nothing,
        unmixed_y_BC=nothing,
        masks_B4=torch.zeros(2, 4),
        sound_B2=torch.tensor([[0, 2], [0, 1]]),
        partner_sound_B2=torch.tensor([[1, 2], [2, 1]]),
    )
    sound_BT = shard.sound(HearsNoPadding())  # type: ignore[arg-type]
    assert sound_BT is not None
    assert sound_BT.tolist() == [[True, True, True], [True, False, True]]
