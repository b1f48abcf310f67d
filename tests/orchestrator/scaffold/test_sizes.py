"""The sizes of a first recipe follow the clips and the machine."""

import pytest

from orchestrator.scaffold.sizes import Machine, choose_sizes, front_end, val_share, window
from orchestrator.scaffold.sounds import Header
from workloads.data.clips import Clip

LAPTOP = Machine(cores=2, memory=8 * 2**30, gpu=False)


def headers(seconds: float, rate: int, count: int = 100) -> tuple[Header, ...]:
    return tuple(Header(f"{number}.wav", seconds, rate) for number in range(count))


def test_digits_of_half_a_second_at_8_khz_stay_that() -> None:
    sizes = choose_sizes(headers(0.5, 8_000), LAPTOP, clips=3000, val_share=0.1)
    assert (sizes.clip_seconds, sizes.front_end, sizes.vit_patch, sizes.roll) == (0.5, "logmel64_8k", 8, 0.1)


def test_clips_of_esc_50_are_heard_whole_at_16_khz() -> None:
    sizes = choose_sizes(headers(5.0, 44_100), LAPTOP, clips=400, val_share=0.1)
    assert (sizes.clip_seconds, sizes.front_end, sizes.vit_patch, sizes.roll) == (5.0, "logmel64", 16, 1.0)
    assert (sizes.shard_size, sizes.steps) == (16, 1050)  # 60 epochs of 280 clips


@pytest.mark.parametrize(
    ("lengths", "seconds"),
    [
        ([0.5] * 20, 0.5),
        ([0.31, 0.42, 0.567] * 10, 0.57),
        ([1.0] * 98 + [600.0] * 2, 1.0),  # a few long ones are heard in windows
        ([1.0] * 90 + [2.0] * 10, 2.0),
        ([30.0] * 5, 10.0),
        ([0.06] * 5, 0.1),
    ],
)
def test_the_window_holds_nearly_all_clips_whole(lengths: list[float], seconds: float) -> None:
    assert window(lengths) == seconds


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        ([8_000] * 10, "logmel64_8k"),
        ([8_000] * 5 + [44_100] * 5, "logmel64_8k"),  # all clips are to sound alike, whatever their tag
        ([8_000] + [44_100] * 9, "logmel64"),
        ([11_025] * 10, "logmel64"),
    ],
)
def test_the_front_end_has_a_rate_that_most_clips_have(rates: list[int], kind: str) -> None:
    assert front_end(rates)[0] == kind


def test_little_memory_takes_fewer_clips_a_step_and_more_cores_larger_networks() -> None:
    small = Machine(cores=2, memory=2**30, gpu=False)
    assert choose_sizes(headers(10.0, 44_100), small, clips=5000, val_share=0.1).shard_size == 2
    large = choose_sizes(headers(10.0, 44_100), Machine(16, 2**36, gpu=True), clips=5000, val_share=0.1)
    assert (large.device, large.shard_size, large.vit_dim, large.threads) == ("cuda", 32, 192, 8)


@pytest.mark.parametrize(
    ("tags", "share"),
    [("ab" * 40, 0.1), ("ab" * 7, 0.2), ("a" * 20 + "b" * 3, 0.34), ("a" * 20 + "b", 0.1), ("ab", 0.5)],
)
def test_every_tag_validates_where_it_has_clips_enough(tags: str, share: float) -> None:
    clips = [Clip(str(number), "", (tag,), 2, str(number)) for number, tag in enumerate(tags)]
    assert val_share(clips) == share
