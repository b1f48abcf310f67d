"""The probabilities of a file's tags, for files of any length."""

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
    """Weights with distinct outputs: with freshly initialised ones all files get nearly the same probabilities."""
    model = Model(arch=ViT(family="vit", dim=16, depth=1, heads=2, pool="avg"))
    tagger = build_tagger(model, name="vit", tags=TAGS, labels="multi", clip_seconds=1.0, clip_rate=RATE, seed=0).eval()
    shapes = {name: list(tensor.shape) for name, tensor in tagger.state_dict().items() if name != "backbone.grid"}
    tagger.load_state_dict(keyed_state(shapes), strict=False)
    return tagger


def tag_samples(tagger: Tagger, x_T: Tensor, *, labels: str = "multi") -> list[float]:
    """The probability of each tag, in the order of TAGS, for a file of these samples."""
    file = io.BytesIO()
    soundfile.write(file, x_T.numpy(), RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    state = {"clip_rate": RATE, "clip_seconds": 1.0, "labels": labels, "tags": TAGS}
    probability = dict(tag_file(tagger, state, file, top=3))
    return [probability[tag] for tag in TAGS]


def window_probabilities(tagger: Tagger, *windows: Tensor) -> Tensor:
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
def test_the_last_window_of_a_longer_file_ends_with_the_file(tagger, samples, starts) -> None:
    x_T = waveform(3.0, RATE)[0, 5000 : 5000 + samples]
    each = window_probabilities(tagger, *(x_T[start : start + LENGTH] for start in starts))
    assert tag_samples(tagger, x_T) == each.mean(0).tolist()


def test_the_windows_of_a_longer_file_give_different_probabilities(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :24_000]
    first, last = window_probabilities(tagger, x_T[:LENGTH], x_T[-LENGTH:])
    assert (first - last).abs().max() > 0.01


def test_a_shorter_file_is_padded_with_zeros(tagger) -> None:
    x_T = waveform(1.0, RATE)[0, :9000]
    (expected,) = window_probabilities(tagger, torch.cat([x_T, torch.zeros(LENGTH - 9000)]))
    assert tag_samples(tagger, x_T) == expected.tolist()


def test_probabilities_of_single_labels_sum_to_one(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :20_000]
    with torch.no_grad():
        each = tagger.tag(torch.stack([x_T[:LENGTH], x_T[-LENGTH:]])).softmax(1)
    probabilities = tag_samples(tagger, x_T, labels="single")
    assert probabilities == each.mean(0).tolist()
    assert sum(probabilities) == pytest.approx(1)
