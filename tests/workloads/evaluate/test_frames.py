"""Frames of 40 ms: their labels, windows joined to recordings, their score, and detections with onset and offset."""

import json
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from workloads.config.architectures import MN, FrameMN
from workloads.config.recipe import Model
from workloads.data.clips import Clip, Dataset
from workloads.data.events import Event
from workloads.evaluate import boxes as boxes_module
from workloads.evaluate.boxes import boxes
from workloads.evaluate.detect import Detection, detect, smooth
from workloads.evaluate.frames import (
    clips_with_frames,
    frame_labels,
    join_windows,
    on_frames,
    score_frames,
)
from workloads.evaluate.predict import predict_clips, score_clips
from workloads.evaluate.psds import psds1, require_packages
from workloads.models.tagger import build_tagger
from workloads.runtime.placement import WorkerGroup
from workloads.train import loop

TAGS = ("a", "b", "c")
FRAMES = ("data.labels='multi'", "models.cnn.arch={family='frame_mn', width=0.1, bn_momentum=0.1}")


def clip_of(name: str, *events: tuple[str, float, float], labelled: bool = True) -> Clip:
    own = tuple(Event(*event) for event in events)
    return Clip(name, name, tuple(sorted({event.tag for event in own})), 1, name, labelled=labelled, events=own)


def dataset_of(*clips: Clip, **fields: Any) -> Dataset:
    return Dataset(clips, TAGS, "multi", **fields)


def test_an_event_counts_from_the_frame_of_its_onset_to_that_of_its_offset() -> None:
    clip = clip_of("x", ("a", 0.05, 0.12), ("a", 0.20, 0.21), ("c", 0.12, 9.0))
    y_FC = frame_labels(clip, 6, {"a": 0, "b": 1, "c": 2})
    assert y_FC[:, 0].tolist() == [False, True, True, False, False, True]
    assert not y_FC[:, 1].any()
    assert y_FC[:, 2].tolist() == [False, False, False, True, True, True]


def test_windows_are_joined_where_they_lie_and_padding_has_no_frames() -> None:
    """Windows of 1 s, 25 frames; of a recording of 1.2 s the second one begins at 0.2 s, 5 frames in."""
    one, two = torch.full((25, 2), 1.0), torch.full((25, 2), 3.0)
    joined = join_windows([one, two], 19_200, rate=16_000, seconds=1.0, long_clips="windows")
    assert joined[:, 0].tolist() == [1.0] * 5 + [2.0] * 20 + [3.0] * 5
    short = join_windows([one], 8_000, rate=16_000, seconds=1.0, long_clips="windows")
    assert len(short) == 13, "0.5 s"
    assert len(join_windows([one], 19_200, rate=16_000, seconds=1.0, long_clips="start")) == 25


def test_frames_of_40_ms_are_averaged_from_shorter_steps_and_interpolated_from_longer_ones() -> None:
    arch = FrameMN(family="frame_mn", width=0.1)
    about: dict[str, Any] = {"tags": TAGS, "labels": "multi", "clip_seconds": 1.0, "clip_rate": 16_000, "seed": 0}
    tagger = build_tagger(Model(arch=arch), name="x", **about)
    for steps in (10, 25, 50):
        frames_BWC = on_frames(tagger, torch.full((2, steps, 3), 0.7))
        torch.testing.assert_close(frames_BWC, torch.full((2, 25, 3), 0.7))
    ramp_BPC = torch.arange(25.0)[None, :, None].expand(1, 25, 3)
    found = on_frames(tagger, ramp_BPC)[0, :, 0]  # step k is around 5 ms + 40 k ms, frame k around 20 + 40 k
    torch.testing.assert_close(found[:-1], torch.arange(24.0) + 15 / 40)


def test_the_score_is_the_mean_average_precision_of_frames_whose_label_is_known() -> None:
    clips = clip_of("x", ("a", 0.0, 0.2)), clip_of("y", ("b", 0.1, 0.3)), replace(clip_of("z"), absent=("a",))
    dataset = dataset_of(*clips)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(10, 3, generator=generator).half() for _ in clips]
    found = score_frames(frames, clips, dataset)
    y_a = [True] * 5 + [False] * 25
    y_b = [False] * 10 + [False] * 2 + [True] * 6 + [False] * 2
    scores = torch.cat(frames).float().numpy()
    expected = [average_precision_score(y_a, scores[:, 0]), average_precision_score(y_b, scores[:20, 1])]
    assert found == {"frame_mAP": pytest.approx(np.mean(expected))}, "c is in no frame, and z may have b"
    perfect = [torch.from_numpy(frame_labels(clip, 10, dataset.columns)).half() for clip in clips]
    assert score_frames(perfect, clips, dataset) == {"frame_mAP": 1.0}
    assert score_frames(frames[:1], [clip_of("x")], dataset) == {}
    assert score_frames([], [], dataset) == {}


def test_a_run_scores_the_frames_of_models_that_have_them(tiny: Any, start: Any) -> None:
    """The frames predicted are those of the tagger; a network without frames has no such score."""
    schedule = "schedule={kind='one_way', teachers=['vit'], teacher_steps=1, steps=2}"
    run = start(tiny("demo", *FRAMES, schedule, "edges=[{teacher='vit', student='cnn'}]"))
    prepared = run.prepared
    tagger = run.pool.train_state("cnn").tagger.train()
    clips = clips_with_frames(tagger, prepared.splits.val)
    assert clips == list(prepared.splits.val)
    _, y_NC, frames = predict_clips(tagger, clips, prepared)
    assert len(y_NC) == len(clips)
    assert tagger.training
    assert [tuple(own.shape) for own in frames] == [(25, 10)] * len(clips)
    x_T = prepared.cache.load(clips[3].clip_id)
    with torch.no_grad():
        own_BPC = tagger.eval().outputs(tagger.front_end(x_T[None])).frames_BPC
    torch.testing.assert_close(frames[3], on_frames(tagger, own_BPC)[0].half(), rtol=0, atol=2e-3)
    scores = score_clips(tagger, prepared.splits.val, prepared, WorkerGroup())
    assert scores["frame_mAP"] == score_frames(frames, clips, prepared.dataset)["frame_mAP"]
    run.pool.release("cnn")
    assert loop(run) == "done"
    records = map(json.loads, (run.session.work_dir / "events.jsonl").read_text().splitlines())
    models = next(record["models"] for record in records if record["kind"] == "result")
    for part in ("val", "test"):
        assert 0 < models["cnn"][part]["frame_mAP"] < 1
        assert "frame_mAP" not in models["vit"][part]


def test_with_one_tag_a_clip_frames_are_not_scored() -> None:
    """A softmax over tags leaves their common level open, which would order the frames."""
    arch, clips = MN(family="mn", width=0.1, head="fully_convolutional"), [clip_of("x", ("a", 0.0, 0.2))]
    about: dict[str, Any] = {"tags": TAGS, "clip_seconds": 1.0, "clip_rate": 16_000, "seed": 0}
    for labels, scored in (("multi", clips), ("single", [])):
        assert clips_with_frames(build_tagger(Model(arch=arch), name="x", labels=labels, **about), clips) == scored


def test_detections_are_runs_of_frames_above_the_threshold_without_single_ones() -> None:
    logits_FC = torch.full((50, 3), -3.0)
    logits_FC[10:20, 0], logits_FC[30, 0], logits_FC[14, 0], logits_FC[0:50, 2] = 2.0, 4.0, -3.0, 1.0
    logits_FC[12, 0] = 3.0
    found = detect(logits_FC, TAGS, seconds=2.0)
    assert [(event.tag, event.onset, event.offset) for event in found] == [("c", 0.0, 2.0), ("a", 0.44, 0.8)]
    assert found[1].probability == pytest.approx(torch.tensor(2.0).sigmoid().item()), "after the median filter"
    unfiltered = detect(logits_FC, TAGS, seconds=2.0, median_seconds=0.0)
    assert [(event.onset, event.offset) for event in unfiltered if event.tag == "a"] == [
        *((0.4, 0.56), (0.6, 0.8), (1.2, 1.24))
    ]
    assert detect(logits_FC, TAGS, seconds=2.0, threshold=0.9) == []
    assert detect(torch.full((3, 3), 9.0), TAGS, seconds=0.1)[0] == Detection(
        "a", 0.0, 0.1, pytest.approx(1.0, abs=1e-3)
    )


@pytest.mark.parametrize(("seconds", "frames"), [(0.0, 1), (0.04, 1), (0.12, 3), (0.36, 9)])
def test_the_median_is_over_the_odd_number_of_frames_nearest_to_its_seconds(seconds: float, frames: int) -> None:
    """It keeps runs of more than half its frames, and removes shorter ones."""
    keeps, loses = (frames + 1) // 2, (frames - 1) // 2
    logits_FC = torch.full((60, 1), -9.0)
    logits_FC[10 : 10 + keeps], logits_FC[40 : 40 + loses] = 9.0, 9.0
    p_F = smooth(logits_FC, seconds)[:, 0]
    assert (p_F > 0.5).sum() == keeps


def perfect(*clips: Clip, frames: int = 250) -> list[Tensor]:
    return [torch.from_numpy(frame_labels(clip, frames, dataset_of().columns)).float() * 8 - 4 for clip in clips]


def test_psds_counts_whole_events() -> None:
    pytest.importorskip("sed_scores_eval")
    clips = [
        clip_of("x", ("a", 1.0, 3.0), ("a", 2.0, 4.0), ("b", 5.0, 7.0)),
        clip_of("y", ("a", 2.0, 3.0)),
        clip_of("z"),
    ]
    found = perfect(*clips)
    assert psds1(found, clips, dataset_of()) == pytest.approx(1.0)
    halves = [own.clone() for own in found]
    halves[0][125:150, 1] = -4.0  # half of b's only event: less than 0.7 of it
    assert psds1(halves, clips, dataset_of()) == pytest.approx(0.5)
    assert psds1([found[2]], [clips[2]], dataset_of()) is None


def test_psds_asks_nothing_of_a_tag_of_which_it_is_not_known_when_it_sounds() -> None:
    """The second clip has "a" too, somewhere: that it is heard there is no false alarm, as it is in a clip without."""
    pytest.importorskip("sed_scores_eval")
    first, second = clip_of("x", ("a", 1.0, 3.0)), clip_of("y", ("b", 2.0, 3.0))
    found = perfect(first, second)
    found[1][150:200, 0] = 5.0  # above a's event
    assert psds1(found, [first, replace(second, tags=("a", "b"))], dataset_of()) == pytest.approx(1.0)
    assert psds1(found, [first, second], dataset_of()) == pytest.approx(0.5)
    quiet = [own.clone() for own in found]
    quiet[0][:, 0] = -4.0  # then no threshold finds a's event alone, whatever the second clip says
    assert psds1(quiet, [first, replace(second, tags=("a", "b"))], dataset_of()) == pytest.approx(0.5)


@pytest.mark.skipif(find_spec("sed_scores_eval") is not None, reason="the package is installed")
def test_without_the_package_psds_names_the_extra() -> None:
    with pytest.raises(ValueError, match=r"sed_scores_eval, which is not installed: pip install 'antiphon\[psds\]'"):
        require_packages(by_boxes=False)


@pytest.mark.skipif(find_spec("ruptures") is not None, reason="the package is installed")
def test_without_the_package_boxes_name_the_extra() -> None:
    with pytest.raises(ValueError, match=r"ruptures, which is not installed: pip install 'antiphon\[boxes\]'"):
        boxes(torch.zeros(3, 1))


def probable(p_FC: Any) -> Tensor:
    return torch.logit(torch.as_tensor(p_FC, dtype=torch.float64))


def test_boxes_are_constant_between_changes_and_keep_the_mean() -> None:
    pytest.importorskip("ruptures")
    p_FC = np.full((250, 3), 0.1)
    p_FC[100:140, 0] = np.tile([0.9, 0.5], 20)  # a threshold of 0.6 finds twenty events in it
    p_FC[30:34, 1] = p_FC[200:, 1] = 0.8
    p_FC[60, 2] = 0.35
    found_FC = boxes(probable(p_FC))
    assert found_FC[:, 0] == pytest.approx(np.where((np.arange(250) >= 100) & (np.arange(250) < 140), 0.7, 0.1))
    assert found_FC[:, 1] == pytest.approx(p_FC[:, 1])
    assert found_FC[:, 2] == pytest.approx(np.full(250, p_FC[:, 2].mean())), "too little to pay for a box"

    found = detect(probable(p_FC), TAGS, seconds=10.0, threshold=0.6, by_boxes=True)
    assert [(event.tag, event.onset, event.offset) for event in found] == [
        *(("b", 1.2, 1.36), ("a", 4.0, 5.6), ("b", 8.0, 10.0))
    ]
    assert found[1].probability == pytest.approx(0.7)
    plain = detect(probable(p_FC), TAGS, seconds=10.0, threshold=0.6, median_seconds=0.0)
    assert sum(event.tag == "a" for event in plain) == 20


def test_boxes_of_a_long_sound_are_found_block_by_block() -> None:
    pytest.importorskip("ruptures")
    p_FC = np.full((2_300, 1), 0.05)
    p_FC[980:1_100], p_FC[2_050:2_060] = 0.9, 0.7
    p_FC[2_299] = 0.6
    found_FC = boxes(probable(p_FC))
    assert found_FC[:2_298] == pytest.approx(p_FC[:2_298], abs=1e-6)
    assert boxes(probable(p_FC[:1])) == pytest.approx(p_FC[:1])
    detected = detect(probable(p_FC), TAGS[:1], seconds=92.0, by_boxes=True)
    assert [(event.onset, event.offset) for event in detected] == [(39.2, 44.0), (82.0, 82.4)]


@pytest.mark.parametrize("first", [960, 985, 999, 1000, 1001, 1490])
def test_an_event_across_the_end_of_a_block_comes_out_once(first: int) -> None:
    """Its second part is less probable, by too little to pay for a change: its box is what tells it."""
    pytest.importorskip("ruptures")
    p_FC = np.full((2_300, 1), 0.05)
    p_FC[first : first + 15], p_FC[first + 15 : first + 30] = 0.555, 0.475
    p_FC[300:400] = 0.9
    detected = detect(probable(p_FC), TAGS[:1], seconds=92.0, by_boxes=True)
    expected = [(12.0, 16.0), (round(first * 0.04, 3), round((first + 30) * 0.04, 3))]
    assert [(event.onset, event.offset) for event in detected] == expected
    assert detected[1].probability == pytest.approx(0.515)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_blocks_are_those_of_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of 0.2 to 120 s in noise, by the same fit of all 4,000 frames at once."""
    pytest.importorskip("ruptures")
    rng = np.random.default_rng(seed)
    lengths = rng.choice([5, 20, 60, 300, 1_100, 3_000], size=12, p=[0.2, 0.3, 0.2, 0.15, 0.1, 0.05])
    p_F = np.repeat(rng.uniform(0.05, 0.95, 12), lengths)[:4_000]
    p_FC = (p_F + rng.normal(0, 0.02, len(p_F)))[:, None].clip(0.01, 0.99)
    found_FC = boxes(probable(p_FC))
    monkeypatch.setattr(boxes_module, "BLOCK", len(p_F))
    np.testing.assert_allclose(found_FC, boxes(probable(p_FC)), rtol=0, atol=1e-6)
    assert len(np.unique(found_FC)) >= 3


def test_psds_of_boxes_needs_no_threshold_that_suits_every_frame() -> None:
    pytest.importorskip("ruptures")
    pytest.importorskip("sed_scores_eval")
    clips = [clip_of("x", ("a", 1.0, 3.0)), clip_of("y", ("a", 5.0, 8.0))]
    found = [own + torch.tensor([2.0, -2.0]).repeat(125)[:, None] for own in perfect(*clips)]
    assert psds1(found, clips, dataset_of(), by_boxes=True) == pytest.approx(1.0)
