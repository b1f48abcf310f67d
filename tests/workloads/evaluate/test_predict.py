"""What a tagger says about one file of any length."""

import io

import pytest
import soundfile
import torch
from torch import Tensor

from tests.official import keyed_state, waveform
from workloads.config.architectures import ViT
from workloads.config.recipe import Model
from workloads.evaluate.predict import tag_file
from workloads.models.tagger import Tagger, build_tagger

RATE = LENGTH = 16_000  # clips of a second
TAGS = ("dog", "rain", "saw")


@pytest.fixture
def tagger() -> Tagger:
    """Fresh weights would say almost the same of everything."""
    model = Model(arch=ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"))
    made = build_tagger(model, name="vit", tags=TAGS, labels="multi", clip_seconds=1.0, clip_rate=RATE, seed=0).eval()
    shapes = {name: list(tensor.shape) for name, tensor in made.state_dict().items() if name != "backbone.grid"}
    made.load_state_dict(keyed_state(shapes), strict=False)
    return made


def tagged(tagger: Tagger, x_T: Tensor, *, labels: str = "multi") -> list[float]:
    """The probability of each tag, in the order of TAGS, of these samples in a file."""
    file = io.BytesIO()
    soundfile.write(file, x_T.numpy(), RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    state = {"clip_rate": RATE, "clip_seconds": 1.0, "labels": labels, "tags": TAGS}
    found = dict(tag_file(tagger, state, file, top=3))
    return [found[tag] for tag in TAGS]


def probabilities(tagger: Tagger, *windows: Tensor) -> Tensor:
    with torch.no_grad():
        return tagger.tag(torch.stack(windows)).sigmoid()


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (LENGTH, [0]),
        (LENGTH + 1, [0, 1]),
        (17_000, [0, 1000]),
        (2 * LENGTH, [0, LENGTH]),
        (40_000, [0, LENGTH, 24_000]),
    ],
)
def test_the_last_window_of_a_longer_file_ends_where_the_file_does(tagger, samples, starts) -> None:
    x_T = waveform(3.0, RATE)[0, 5000 : 5000 + samples]
    each = probabilities(tagger, *(x_T[start : start + LENGTH] for start in starts))
    assert tagged(tagger, x_T) == each.mean(0).tolist()


def test_the_windows_of_a_slightly_longer_file_say_different_things(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :24_000]
    first, last = probabilities(tagger, x_T[:LENGTH], x_T[-LENGTH:])
    assert (first - last).abs().max() > 0.01


def test_a_shorter_file_is_filled_up_with_silence(tagger) -> None:
    x_T = waveform(1.0, RATE)[0, :9000]
    (expected,) = probabilities(tagger, torch.cat([x_T, torch.zeros(LENGTH - 9000)]))
    assert tagged(tagger, x_T) == expected.tolist()


def test_where_one_tag_is_right_probabilities_add_up(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :20_000]
    with torch.no_grad():
        each = tagger.tag(torch.stack([x_T[:LENGTH], x_T[-LENGTH:]])).softmax(1)
    found = tagged(tagger, x_T, labels="single")
    assert found == each.mean(0).tolist()
    assert sum(found) == pytest.approx(1)
