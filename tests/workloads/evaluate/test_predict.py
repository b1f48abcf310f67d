"""The probabilities of a file's tags, for files of any length."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from tests.hearing import hearing
from tests.official import waveform
from workloads.config.architectures import AST, ViT
from workloads.config.data import Data
from workloads.config.recipe import FrontEnd, Model, Recipe, Train
from workloads.config.schedules import Mutual
from workloads.data.cache import ClipCache
from workloads.data.clips import Dataset
from workloads.data.manifest import read_dataset
from workloads.data.prepare import PreparedData
from workloads.data.splits import Splits
from workloads.evaluate import predict, sounds
from workloads.evaluate.predict import BadNumbers, load_tagger, predict_clips
from workloads.evaluate.sounds import hear_sound, likeliest
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime.checkpoint import weights_digest, write
from workloads.runtime.opener import LocalFiles

RATE = LENGTH = 16_000  # clips of a second
TAGS = ("dog", "rain", "saw")


def tagger_of(model: Model) -> Tagger:
    """Its weights give distinct outputs: with freshly initialised ones all files get nearly the same probabilities."""
    return hearing(build_tagger(model, name="one", tags=TAGS, labels="multi", clip_seconds=1.0, clip_rate=RATE, seed=0))


@pytest.fixture
def tagger() -> Tagger:
    return tagger_of(Model(arch=ViT(family="vit", dim=16, depth=1, heads=2, pool="avg")))


def tag_samples(tagger: Tagger, x_T: Tensor, *, labels: str = "multi", long_clips: str = "windows") -> list[float]:
    """The probability of each tag, in the order of TAGS, for a sound of these samples."""
    tagger.labels = labels
    probability = dict(likeliest(tagger, hear_sound(tagger, x_T, long_clips).logits_C, top=3))
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
    assert tag_samples(tagger, x_T) == pytest.approx(each.mean(0).tolist(), abs=1e-6)


def test_the_windows_of_a_longer_file_give_different_probabilities(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :24_000]
    first, last = window_probabilities(tagger, x_T[:LENGTH], x_T[-LENGTH:])
    assert (first - last).abs().max() > 0.01


def test_a_shorter_file_is_padded_with_zeros(tagger) -> None:
    x_T = waveform(1.0, RATE)[0, :9000]
    (expected,) = window_probabilities(tagger, torch.cat([x_T, torch.zeros(LENGTH - 9000)]))
    assert tag_samples(tagger, x_T) == expected.tolist()


def test_a_short_file_is_heard_as_ast_hears_it() -> None:
    """Its missing frames are 0 before normalisation, not the spectrum of silence."""
    model = Model(arch=AST(family="ast", size="tiny"), front_end=FrontEnd(kind="kaldi128"))
    ast = tagger_of(model)
    x_T = waveform(1.0, RATE)[0, :9000]
    frames_1FM = fbank(
        (x_T - x_T.mean())[None],
        htk_compat=True,
        sample_frequency=RATE,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
    )[None]
    mel_1MF = torch.nn.functional.pad(frames_1FM, (0, 0, 0, ast.num_frames - frames_1FM.shape[1])).transpose(1, 2)
    with torch.no_grad():
        expected_C = ast(mel_1MF).sigmoid()[0]
        silence_C = ast.tag(torch.cat([x_T, torch.zeros(LENGTH - 9000)])[None]).sigmoid()[0]
    heard_C = torch.tensor(tag_samples(ast, x_T))
    torch.testing.assert_close(heard_C, expected_C, atol=1e-4, rtol=0)
    assert (silence_C - expected_C).abs().max() > 0.01


def test_a_long_recording_is_tagged_in_parts(tagger, monkeypatch) -> None:
    x_T = waveform(10.0, RATE)[0]
    at_once = tag_samples(tagger, x_T)
    sizes = []
    tag = tagger.tag
    monkeypatch.setattr(sounds, "WINDOWS_AT_ONCE", 3)
    monkeypatch.setattr(tagger, "tag", lambda x_BT, sound_BT: sizes.append(len(x_BT)) or tag(x_BT, sound_BT))
    assert tag_samples(tagger, x_T) == pytest.approx(at_once, abs=1e-6)
    assert sizes == [3, 3, 3, 1]


def test_logits_that_are_not_finite_are_no_answer(tagger) -> None:
    tagger.backbone.head.weight.data[0, 0] = torch.nan
    with pytest.raises(BadNumbers, match="its weights are damaged or have diverged"):
        tag_samples(tagger, waveform(1.0, RATE)[0])


def test_probabilities_of_single_labels_sum_to_one(tagger) -> None:
    x_T = waveform(2.0, RATE)[0, :20_000]
    with torch.no_grad():
        each = tagger.tag(torch.stack([x_T[:LENGTH], x_T[-LENGTH:]])).softmax(1)
    probabilities = tag_samples(tagger, x_T, labels="single")
    assert probabilities == pytest.approx(each.mean(0).tolist(), abs=1e-6)
    assert sum(probabilities) == pytest.approx(1)


def test_only_the_start_of_a_longer_file_is_heard_where_the_tagger_says_so(tagger) -> None:
    x_T = waveform(2.0, RATE)[0]
    assert tag_samples(tagger, x_T, long_clips="start") == tag_samples(tagger, x_T[:LENGTH])
    assert tag_samples(tagger, x_T) != tag_samples(tagger, x_T[:LENGTH])


@pytest.mark.parametrize("long_clips", ["windows", "start"])
def test_scoring_hears_what_tag_hears_of_longer_clips(tagger, esc10, tmp_path, long_clips) -> None:
    """Real recordings of 5 s in windows of 1 s, two windows at once."""
    data = Data(format="esc50", root=str(esc10), labels="multi", clip_seconds=1.0, long_clips=long_clips)
    clips = tuple(replace(clip, tags=()) for clip in read_dataset(data, LocalFiles()).clips[:3])
    cache = ClipCache(tmp_path, rate=RATE, limit_gb=1.0)
    assert cache.prepare(clips, data, LocalFiles()) == []
    schedule = Mutual(kind="mutual", burn_in=0, steps=1)
    train = Train(shard_size=2)
    recipe = Recipe(name="test", data=data, models={"one": tagger.model}, schedule=schedule, train=train)
    prepared = PreparedData(recipe, Dataset(clips, TAGS, "multi"), Splits((), (), ()), cache, ())
    logits_NC, *_ = predict_clips(tagger, clips, prepared)
    for clip, logits_C in zip(clips, logits_NC, strict=True):
        heard = tag_samples(tagger, cache.load(clip.clip_id), long_clips=long_clips)
        assert logits_C.sigmoid().tolist() == pytest.approx(heard, abs=1e-6)


def delivered(tagger: Tagger, folder: Path, *, tensors: dict[str, Tensor] | None = None, **changed: Any) -> Path:
    state = {"kind": "tagger", "name": "one", "model": asdict(tagger.model), "tags": list(TAGS), "labels": "multi"}
    state |= {"clip_seconds": 1.0, "clip_rate": RATE, "long_clips": "windows"} | changed
    return write(folder, tensors={"weights": tagger.state_dict() | (tensors or {})}, state=state)


def test_a_delivered_tagger_is_read_back(tagger, tmp_path) -> None:
    read, state = load_tagger(delivered(tagger, tmp_path / "one"))
    assert weights_digest(read.state_dict()) == weights_digest(tagger.state_dict())
    assert state["tags"] == list(TAGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tensors": {"backbone.norm.bias": torch.ones(17)}}, "wrong shape: norm.bias is (17,), must be (16,)"),
        ({"tensors": {"backbone.more": torch.ones(1)}}, "unknown: more"),
        (
            {"tensors": {"backbone.norm.bias": torch.ones(16, dtype=torch.int64)}},
            "norm.bias is whole, must be floating",
        ),
        ({"tags": list(map(str, range(9)))}, "wrong shape: head.weight is (3, 16), must be (9, 16)"),
        ({"clip_seconds": 1e9}, "state.json: clip_seconds: input should be less than or equal to 3600"),
        ({"clip_seconds": math.nan}, "state.json: clip_seconds: input should be"),
        ({"clip_seconds": 3000.0}, "wrong shape: pos_embed is"),
        ({"clip_rate": 10**12}, "state.json: clip_rate: input should be less than or equal to 192000"),
        ({"clip_rate": 44_101}, "clip_rate = 44101: its ratio to the 16000 Hz of logmel64 is 44101/16000, and must be"),
        ({"model": {"arch": {"family": "vit", "dim": 6000, "depth": 4, "heads": 2}}}, "wrong shape: cls_token is"),
        ({"model": {"arch": {"family": "vit", "depth": 10**9}}}, "must be at most 1,000"),
    ],
)
def test_weights_are_compared_with_the_network_before_it_is_built(tagger, tmp_path, monkeypatch, changed, message):
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a network was built")

    folder = delivered(tagger, tmp_path / "one", **changed)
    monkeypatch.setattr(predict, "build_tagger", never)
    with pytest.raises(ValueError, match=r"checkpoint s3://bucket/one") as caught:
        load_tagger(folder, "s3://bucket/one")
    assert message in str(caught.value)


def test_sounds_heard_together_get_the_answers_that_each_gets_alone() -> None:
    """Also where one is shorter than a window, and a front end does not hear padding."""
    ast = tagger_of(Model(arch=AST(family="ast", size="tiny"), front_end=FrontEnd(kind="kaldi128")))
    waveforms = [waveform(3.0, RATE)[0, start:end] for start, end in ((0, 9000), (5000, 45_000), (0, LENGTH))]
    together = [sounds.cut_windows(ast, x_T, "windows") for x_T in waveforms]
    pieces = [piece for sound in together for piece in sound.pieces(2)]
    assert [len(piece) for piece in pieces] == [1, 2, 1, 1]
    heard = sounds.hear_pieces(ast, pieces, embeddings=True)
    for sound, x_T in zip(together, waveforms, strict=True):
        own = [each for each, piece in zip(heard, pieces, strict=True) if piece.sound is sound]
        joined, alone = sounds.join_pieces(ast, sound, own), hear_sound(ast, x_T, "windows", embeddings=True)
        torch.testing.assert_close(joined.logits_C, alone.logits_C, atol=1e-4, rtol=0)
        torch.testing.assert_close(joined.embedding_D, alone.embedding_D, atol=1e-4, rtol=0)
        assert joined.frames_FC is None
