"""The share of a profile inside the keyword: exact on profiles that are written down, and by hand on a network's."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import event_records
from tests.orchestrator.artifacts.test_tag import publish
from tests.trained_runs import grid, trained
from workloads.config.architectures import OnDevice
from workloads.config.recipe import FrontEnd, Model
from workloads.data.events import Event
from workloads.data.formant_words import FORMANT_WORDS
from workloads.evaluate.attention_mass import (
    ENERGY,
    OWN,
    attention_masses,
    keyword_of,
    mass_of_flat_profiles,
    mass_within,
)
from workloads.evaluate.bootstrap import compare_means
from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import build_tagger
from workloads.run import Run
from workloads.train import loop

KEYWORDS = ("data.format=keywords", "data.labels=single", "data.clip_seconds=2.0", "data.val_share=0.2")


def masses(p_BP: list[list[float]], *events: tuple[float, float], first: float = 0.0) -> list[float]:
    """Of profiles over the four steps of a clip of two seconds."""
    own = [Event("yes", *event) for event in events]
    return mass_within(torch.tensor(p_BP), grid(4, seconds=2.0, first=first), own, seconds=2.0).tolist()


def test_a_flat_profile_has_the_share_that_the_keyword_lasts() -> None:
    assert masses([[0.25] * 4] * 2, (0.3, 1.0), (1.9, 2.0)) == pytest.approx([0.35, 0.05])


def test_a_peak_counts_by_the_part_of_its_step_that_the_keyword_covers() -> None:
    peak = [0.0, 1.0, 0.0, 0.0]
    found = masses([peak] * 4, (0.5, 1.0), (1.0, 2.0), (0.75, 1.75), (0.6, 0.7))
    assert found == pytest.approx([1.0, 0.0, 0.5, 0.2])


def test_of_a_step_that_begins_before_the_clip_the_part_within_is_the_whole() -> None:
    """Steps from -0.25 on: the first is heard from 0 to 0.25, the last up to 1.75."""
    assert masses([[0.4, 0.2, 0.2, 0.2]], (0.0, 0.25), first=-0.25) == pytest.approx([0.4])
    assert masses([[0.4, 0.2, 0.2, 0.2]], (0.0, 2.0), first=-0.25) == pytest.approx([1.0])


def test_the_energy_of_a_network_is_measured_whatever_attention_it_has(tiny: Any, start: Any) -> None:
    attentive = 'models.cnn.arch={family="ondevice", variant="att_rnn"}'
    run = start(tiny("one-way", *KEYWORDS, attentive, "models.cnn.front_end.kind=logmel40", "train.shard_size=3"))
    prepared, clips = run.prepared, run.prepared.splits.val[:7]
    for name in ("cnn", "vit"):
        tagger = run.pool.train_state(name).tagger.train()
        found = attention_masses(tagger, clips, prepared)
        assert tagger.training
        assert set(found) == ({ENERGY, OWN} if name == "cnn" else {ENERGY})
        for number, clip in enumerate(clips):
            with torch.no_grad():
                mel_BMF = tagger.eval().front_end(prepared.cache.load(clip.clip_id)[None], None)
                sequence_BPD = tagger.outputs(mel_BMF).sequence_BPD
                profiles = {ENERGY: sequence_BPD[0].square().mean(1)}
                profiles |= {OWN: tagger.backbone.weights(sequence_BPD)[0].mean(0)} if name == "cnn" else {}
            for score, weight_P in profiles.items():
                by_hand = _mass_by_hand(weight_P.double(), time_grid(tagger, len(weight_P)), keyword_of(clip))
                assert found[score][number] == pytest.approx(by_hand, abs=1e-3), "EPSILON is added to every step"
    assert mass_of_flat_profiles(clips, seconds=2.0) == pytest.approx(
        sum(keyword_of(clip).offset - keyword_of(clip).onset for clip in clips) / 14
    )


def _mass_by_hand(weight_P: torch.Tensor, steps: TimeGrid, event: Event) -> float:
    """Of a clip of two seconds."""
    bounds = [min(max(steps.first + steps.step * k, 0.0), 2.0) for k in range(len(weight_P) + 1)]
    covered = [
        max(0.0, min(end, event.offset) - max(begin, event.onset)) / max(end - begin, 1e-9)
        for begin, end in pairwise(bounds)
    ]
    return float((weight_P / weight_P.sum() * torch.tensor(covered, dtype=torch.float64)).sum())


def listener_to_loudness(folder: Path) -> Path:
    """A teacher whose weights are set by hand, an LSTM-P: the energy of a step grows with the loudness of its frame.

    Its output gate is exp(0.6 c - 15) of the first cepstral coefficient c, the loudness in all bands; all else is
    open, and nothing is kept.
    """
    tags = tuple(sorted(FORMANT_WORDS))
    model = Model(arch=OnDevice(family="ondevice", variant="lstm_p"), front_end=FrontEnd(kind="logmel40"))
    about: dict[str, Any] = {"tags": tags, "labels": "single", "clip_seconds": 1.5, "clip_rate": 16_000}
    tagger = build_tagger(model, name="loud", seed=0, **about).eval()
    lstm: Any = tagger.backbone.lstm
    units = lstm.project.in_features
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter.zero_()
        for gate, bias in enumerate((20.0, -20.0, 20.0, -15.0)):
            lstm.inputs.bias[gate * units : (gate + 1) * units] = bias
        lstm.inputs.weight[3 * units, 0] = 0.6
        lstm.project.weight[0, 0] = 1.0
    return publish(tagger, folder / "loud")


@pytest.mark.parametrize(
    ("variant", "score", "lr", "steps"), [("att_rnn", OWN, 1e-3, 16), ("tc_resnet", ENERGY, 3e-3, 28)]
)
def test_a_student_that_is_taught_when_listens_to_keywords_more(
    variant: str, score: str, lr: float, steps: int, tmp_path: Path, tiny: Any, start: Any
) -> None:
    """reference/tkd.md 9.6, end to end: keywords at known places, far above the noise; student and control begin with
    the same weights, and one has an edge of profiles more. After so many steps the masses of the first are .79 and .35,
    of the second .89 and .69; labels teach some of it too."""
    run = start(
        tiny(
            "one-way",
            *("data.format=keywords", "data.labels=single", "data.clip_seconds=1.5", "data.snr_db=[15.0, 20.0]"),
            *("data.synthetic_clips=100", "data.val_share=0.25", "compare=true"),
            f"models.cnn={{arch={{family='ondevice', variant='{variant}'}}, front_end={{kind='logmel40'}}}}",
            "models.vit={arch={family='ondevice', variant='lstm_p'}, front_end={kind='logmel40'}, "
            f"init='{listener_to_loudness(tmp_path)}'}}",
            f"schedule={{kind='one_way', teachers=['vit'], teacher_steps=0, steps={steps}}}",
            "edges=[{teacher='vit', student='cnn', carries='temporal', weight=5.0}]",
            *(f"models.cnn.optimizer.lr={lr}", "train.eval_every=100"),
        )
    )
    clips = run.prepared.splits.val

    def mass(name: str, score: str) -> float:
        return float(attention_masses(run.pool.train_state(name).tagger, clips, run.prepared)[score].mean())

    first, flat = mass("cnn", score), mass_of_flat_profiles(clips, seconds=1.5)
    assert first == mass("cnn_untaught", score)
    trained(run)
    teacher, taught, untaught = mass("vit", ENERGY), mass("cnn", score), mass("cnn_untaught", score)
    assert teacher > 1.5 * flat
    assert taught > first + 0.1
    assert taught > untaught + 0.1


def test_a_run_scores_the_attention_of_every_model_to_keywords_and_no_other_run_does(tiny: Any, start: Any) -> None:
    schedule = "schedule={kind='one_way', teachers=['vit'], teacher_steps=1, steps=1}"
    edges = "edges=[{teacher='vit', student='cnn', carries='temporal'}]"
    for settings, scored in ((KEYWORDS, True), ((), False)):
        run = start(tiny("one-way", *settings, schedule, edges, "compare=true"))
        assert loop(run) == "done"
        records = {record["kind"]: record for record in event_records(run)}
        models = records["result"]["models"]
        assert set(models) == {"cnn", "vit", "cnn_untaught"}
        for row in models.values():
            for part in ("val", "test"):
                assert ("attention_mass" in row[part]) == scored
                assert 0 < row[part].get("attention_mass", 0.5) < 1
        assert ("profiles" in records) == scored
        if scored:
            _require_profiles(records["profiles"], run)


def _require_profiles(record: dict[str, Any], run: Run) -> None:
    """Three test clips with their keywords, and each model's distribution over its own steps."""
    assert record["seconds"] == 2.0
    test = {clip.clip_id: clip for clip in run.prepared.splits.test}
    assert [clip["clip_id"] for clip in record["clips"]] == list(test)[:3], "words come in turn"
    assert len({clip["tag"] for clip in record["clips"]}) == 3
    for clip in record["clips"]:
        event = keyword_of(test[clip["clip_id"]])
        assert (clip["tag"], clip["onset"]) == (event.tag, pytest.approx(event.onset, abs=1e-5))
        mel_MF = torch.tensor(clip["mel"])
        assert mel_MF.shape == (40, 100)
        assert (int(mel_MF.min()), int(mel_MF.max())) == (0, 99)
    kinds = {name: heard["profile"] for name, heard in record["models"].items()}
    assert kinds == {"cnn": "energy", "vit": "rollout", "cnn_untaught": "energy"}
    for heard in record["models"].values():
        assert len(heard["clips"]) == 3
        for shares in heard["clips"]:
            assert sum(shares) == pytest.approx(1, abs=1e-4)
            assert heard["first"] + heard["step"] * len(shares) >= 1.7


def test_the_difference_of_means_has_the_interval_of_a_paired_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    untaught_N = torch.rand(200, generator=generator, dtype=torch.float64)
    gain_N = 0.1 + 0.05 * torch.randn(200, generator=generator, dtype=torch.float64)
    found = compare_means([(untaught_N + gain_N, untaught_N)])
    assert found["untaught"] == pytest.approx(float(untaught_N.mean()))
    assert found["difference"] == pytest.approx(float(gain_N.mean()))
    low, high = found["interval"]
    error = float(gain_N.std()) / 200**0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(found["difference"], abs=0.2 * error)
    same = compare_means([(untaught_N, untaught_N)] * 2)
    assert (same["difference"], same["interval"]) == (0.0, [0.0, 0.0])
