"""That a student gets its teachers' waveforms is compared for some clips, or the run says why it is not."""

import json
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_teach_recipe
from orchestrator.stores.merge import merge_stores
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from tests import small, stores
from tests.orchestrator.artifacts.test_tag import publish
from tests.orchestrator.teaching.test_fill import content
from tests.packs import TAGS
from workloads.config.recipe import Model, restore
from workloads.models.tagger import build_tagger
from workloads.run import Run
from workloads.stores.checksum_sample import sampled_in_shard, sampled_views
from workloads.stores.description import DRAWN_ELSEWHERE
from workloads.stores.plan import ShardPlan

OTHERS = [f"other-{number:02}" for number in range(40)]
SAMPLED = list(  # names of which every store that has them keeps a checksum, however large it is
    islice((name for name in (f"s-{number}" for number in count()) if sampled_in_shard(ShardPlan(0, (name,), 1))), 19)
)
IN_SHARDS = sorted({*SAMPLED} - {*sampled_views([*OTHERS, *SAMPLED], 2)})  # and not in the description too
STUDENT = ["schedule={kind='mutual', burn_in=0, steps=2}", f"models={{student={{arch={small.VIT}}}}}"]


def listed(folder: Path, clip_ids: list[str]) -> list[str]:
    """Settings of the data of these clips, the first eight of fold 1, with a table of their own."""
    table = folder / f"{len(clip_ids)}.csv"
    rows = [f"{name},{name}.wav,{TAGS[n % 3]},{1 + (n >= 8) + (n >= 16)}" for n, name in enumerate(clip_ids)]
    table.write_text("\n".join(["clip_id,path,tags,fold", *rows]))
    values = {"format": "manifest", "manifest": table, "root": folder, "labels": "single", "val_share": 0.3}
    return [f"data.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and a folder of noise."""
    folder = tmp_path_factory.mktemp("noise")
    for number, name in enumerate([*OTHERS, *SAMPLED]):
        samples = np.random.default_rng(number).uniform(-0.3, 0.3, 12_000)
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    model = restore(Model, {"arch": {"family": "mn", "width": 0.1, "bn_momentum": 0.1}})
    shape: dict[str, Any] = {"tags": TAGS, "labels": "single", "clip_seconds": 1.0, "clip_rate": 16_000}
    publish(build_tagger(model, name="cnn", seed=7, **shape).eval(), folder / "cnn")
    return folder


@pytest.fixture(scope="module")
def fill(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(clip_ids: list[str], *settings: str) -> Path:
        out = tmp_path_factory.mktemp("stores") / "store"
        own = [*listed(clips, clip_ids), "data.clip_seconds=1.0", "teach.views=2", "teach.clips_per_shard=10"]
        own += ["augment={roll=0.5}", f"data.cache={clips}/cache", f"teachers={{cnn={{uri='{clips}/cnn'}}}}"]
        own = [word for word in own if "val_share" not in word]
        request = TeachRequest(load_teach_recipe("teach-demo", [*own, *settings]), str(out), local=True)
        assert fill_store(request, on_shard=lambda *_: None, warn=lambda line: None)["status"] == "done"
        return out

    return make


@pytest.fixture(scope="module")
def whole(fill) -> Path:
    return fill([*OTHERS, *SAMPLED])


@pytest.fixture
def student(tiny, clips, start) -> Callable[..., dict[str, Any]]:
    """The record of the data of a student that trains on these clips."""

    def train(store: Path, clip_ids: list[str], *settings: str, edge: str = "") -> dict[str, Any]:
        edges = f"edges=[{{teacher='store:{store}', student='student'{edge}}}]"
        own = [*listed(clips, clip_ids), "augment={roll=0.5}", "train.shard_size=2"]
        return data_record(start(tiny("demo", *STUDENT, edges, *own, *settings)))

    return train


def data_record(run: Run) -> dict[str, Any]:
    return next(record for record in run.unreported_records if record["kind"] == "data")


def manifest_of(store: Path) -> dict[str, Any]:
    return json.loads((store / "manifest.json").read_text())


def test_a_student_of_few_clips_of_a_large_store_is_compared(whole, student, clips):
    """Of none of these clips does the description have a checksum: they are of the share of every shard."""
    few = OTHERS[:16] + IN_SHARDS
    record = student(whole, few)
    (store,) = record["stores"]
    assert (store["waveforms_compared"], store["not_compared"]) == (3, "")
    described = json.loads((whole / "description.json").read_text())["teachers"]
    assert store["teachers"] == {"cnn": described[0]["weights_sha256"]}
    assert not [line for line in record["warnings"] if "waveforms" in line]
    shards = manifest_of(whole)["shards"]
    assert {name for shard in shards for name in shard.get("checksums", {})} == {*SAMPLED}
    assert {path.suffix for path in (whole / "shards").iterdir()} == {".npy"}

    changed = clips / f"{IN_SHARDS[1]}.wav"
    sound = changed.read_bytes()
    soundfile.write(changed, np.zeros(12_000), 16_000)
    with pytest.raises(ValueError, match=f"another waveform than the student does of clip '{IN_SHARDS[1]}' in view"):
        student(whole, few)
    changed.write_bytes(sound)


def test_at_most_eight_clips_are_compared(whole, student):
    (store,) = student(whole, [*OTHERS, *SAMPLED])["stores"]
    assert store["waveforms_compared"] == 8


def test_a_run_that_can_compare_nothing_says_so(whole, fill, student, tmp_path):
    none_common = "none of the 19 clips of which it has checksums can be compared here: 0 of them train"
    clean = fill(OTHERS, "augment={}", "teach.views=1")
    another_rate = fill(OTHERS, "augment={}", "teach.views=1", "data.rate=32000")
    for arguments, reason, fix in (
        ({"store": whole, "clip_ids": OTHERS}, none_common, "train on more clips of the store"),
        (
            {"store": another_rate, "clip_ids": OTHERS, "edge": ", view='clean'"},
            "its teachers got clips at 32000 Hz, here they have 16000 Hz",
            "set data.rate = 32000 here",
        ),
        (
            {"store": imported(tmp_path / "imported"), "clip_ids": OTHERS, "edge": ", view='clean'"},
            "it has no checksums, another program made its rows",
            "stores that `antiphon teach` fills have some",
        ),
    ):
        record = student(**arguments)
        (store,) = record["stores"]
        assert (store["waveforms_compared"], store["not_compared"]) == (0, reason)
        (warning,) = [line for line in record["warnings"] if "waveforms" in line]
        assert warning.startswith("edges store-to-student: store '")
        assert f"nothing shows that the student gets the waveforms that its teachers got: {reason}; {fix}" in warning
    record = student(clean, OTHERS, edge=", view='other'")
    assert record["stores"][0]["not_compared"].startswith("view = 'other'")
    assert not [line for line in record["warnings"] if "waveforms" in line], "the recipe says it"


def imported(folder: Path) -> Path:
    """A store as an import makes it, of clean clips."""
    views = {"version": DRAWN_ELSEWHERE, "augment": {}, "clip_seconds": 1.0, "rate": 16_000, "count": 1}
    about = stores.about(tags=3, views=1) | {"views": views, "labels": "single", "tags": list(TAGS)}
    stores.fill(str(folder), about, OTHERS)
    return folder


def test_a_merged_store_has_the_checksums_of_one_that_is_made_at_once(whole, fill, tmp_path):
    parts = [fill([*OTHERS[::2], *SAMPLED[::2]]), fill([*OTHERS[1::2], *SAMPLED[1::2]])]
    merge_stores([str(part) for part in parts], str(tmp_path / "merged"))
    assert content(tmp_path / "merged") == content(whole)


def test_the_share_of_clips_with_checksums_does_not_depend_on_shards():
    names = tuple(sorted(f"Y{number:011}.wav" for number in range(40_960)))
    sample = sampled_in_shard(ShardPlan(0, names, 4))
    assert 55 <= len(sample) <= 105  # 80 are expected, with a deviation of 9
    shards = [ShardPlan(n, names[n * 512 : n * 512 + 512], 4) for n in range(80)]
    assert sample == {name: view for shard in shards for name, view in sampled_in_shard(shard).items()}
    assert {*sample.values()} == {0, 1, 2, 3}
