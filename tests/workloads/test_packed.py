"""Runs on packed data: the same weights as on plain files, whatever the form, the loaders, and after a resume; clips
that are damaged later are recorded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.recipes.loader import resolve
from orchestrator.runs.resume import differences
from tests.commands import event_records
from tests.packs import damage_clip, pack_as, write_clips
from workloads.config.recipe import Recipe
from workloads.run import Run
from workloads.runtime.event_log import read_event_log
from workloads.train import loop

SCHEDULE = ["schedule.burn_in=4", "schedule.period=2", "schedule.turns=2", "train.eval_every=100"]
VIEWS = ["data.sampling=balanced", "augment.mixup=0.5", "augment.roll=0.5", "data.clip_seconds=0.8"]


def weights(run: Run) -> dict[str, str]:
    assert loop(run) == "done"
    return {name: row["weights_sha256"] for name, row in event_records(run)[-1]["models"].items()}


def test_packed_plain_and_cached_data_give_the_same_weights(
    tmp_path: Path, tiny: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    """Each form once, one with loaders, another with loaders too and resumed from a run without on the plain files."""
    plain = [*write_clips(tmp_path / "plain"), *SCHEDULE, *VIEWS]
    recipe = tiny("demo", *plain)
    expected = weights(start(recipe))

    def packed(form: str, *settings: str) -> Recipe:
        root = str(tmp_path / form)
        pack_as(recipe, root, form)
        return tiny("demo", *plain, "data.format=packed", "data.manifest=''", f"data.root={root}", *settings)

    assert weights(start(packed("original", "train.loaders=2"))) == expected
    assert weights(start(packed("flac"))) == expected
    cut = start(recipe)
    assert loop(cut, until=5) == "preempted"
    int16 = packed("int16", "train.loaders=1")
    assert weights(start(int16, checkpoints_of=cut)) == expected
    assert differences(int16, resolve(recipe)) == [], "the drivers resume it too"


def test_a_clip_that_is_damaged_later_is_recorded_once_also_by_a_run_that_is_resumed(
    tmp_path: Path, tiny: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    plain = [*write_clips(tmp_path / "plain"), *SCHEDULE, *VIEWS]
    pack_as(tiny("demo", *plain), str(tmp_path / "pack"), "flac")
    recipe = tiny("demo", *plain, "data.format=packed", "data.manifest=''", f"data.root={tmp_path / 'pack'}")
    cut = start(recipe)
    drawn = [cut.batches.clip_ids(step) for step in range(cut.phases[-1].end)]
    (lost, *_) = (clip_id for clip_id in drawn[0] if any(clip_id in later for later in drawn[5:]))
    damage_clip(cut.prepared, lost)
    assert loop(cut, until=5) == "preempted"
    (record,) = replaced(event_records(cut))
    assert (record["step"], record["clip_id"]) == (0, lost)
    assert record["by"] != lost
    resumed = start(recipe, checkpoints_of=cut)
    assert loop(resumed) == "done"
    assert replaced(event_records(resumed)) == []
    assert replaced(read_event_log(resumed.history.path)) == [record]


def replaced(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "replaced"]
