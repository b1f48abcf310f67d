"""The share of a profile inside the keyword: exact on profiles that are written down, and by hand on a network's."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.commands import event_records
from tests.trained_runs import grid
from workloads.data.events import Event
from workloads.evaluate.attention_mass import attention_masses, keyword_of, mass_of_flat_profiles, mass_within
from workloads.evaluate.bootstrap import compare_means
from workloads.models.profiles import time_grid
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
        found_N = attention_masses(tagger, clips, prepared)
        assert tagger.training
        for clip, found in zip(clips, found_N.tolist(), strict=True):
            with torch.no_grad():
                mel_BMF = tagger.eval().front_end(prepared.cache.load(clip.clip_id)[None], None)
                energy_P = tagger.outputs(mel_BMF).sequence_BPD[0].square().mean(1).double()
            steps, event = time_grid(tagger, len(energy_P)), keyword_of(clip)
            bounds = [min(max(steps.first + steps.step * k, 0.0), 2.0) for k in range(len(energy_P) + 1)]
            covered = [
                max(0.0, min(end, event.offset) - max(begin, event.onset)) / max(end - begin, 1e-9)
                for begin, end in pairwise(bounds)
            ]
            by_hand = float((energy_P / energy_P.sum() * torch.tensor(covered, dtype=torch.float64)).sum())
            assert found == pytest.approx(by_hand, abs=1e-3), "EPSILON is added to every step"
    assert mass_of_flat_profiles(clips, seconds=2.0) == pytest.approx(
        sum(keyword_of(clip).offset - keyword_of(clip).onset for clip in clips) / 14
    )


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
