"""Students of a store wherever it lies and however they are trained: the same bits, the right rows, every schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.storage.fsspec_files import FsspecFiles
from tests import killed, placed, small
from tests.killed import Kill, outcome
from tests.orchestrator.teaching.conftest import AUGMENT, VIEWS
from tests.orchestrator.teaching.test_offline import MIXED, losses, run_records
from tests.tiny_search import results, sets
from tests.tiny_search import run as run_command
from workloads.data.shard import stored_view
from workloads.evaluate.predict import load_tagger
from workloads.run import Run
from workloads.runtime.opener import LocalFiles
from workloads.train import loop


def weights(run: Run) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in run_records(run)[-1]["models"].items()}


def edge_of(uri: object, *, student: str = "student", weight: float = 0.9, more: str = "") -> str:
    return f"{{teacher='store:{uri}', student='{student}', weight={weight}{more}}}"


def test_a_store_on_s3_teaches_what_its_copy_on_a_disk_teaches(offline, store, start, s3_server, monkeypatch):
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    s3_server.client().create_bucket(Bucket="students-store")
    store("teach.clips_per_shard=16", out="s3://students-store/ensemble")
    found, runs = [], []
    for uri in ("s3://students-store/ensemble", store()):
        runs.append(start(offline(f"[{edge_of(uri)}]", "schedule.steps=4"), files=FsspecFiles()))
        assert loop(runs[-1]) == "done"
        found.append(weights(runs[-1]))
    assert found[0] == found[1]
    shards = runs[0].stores.teachers["store-to-student"].reader.store.manifest["shards"]
    fetched = {path.name for path in (Path(runs[0].recipe.data.cache).parent / "stores").iterdir()}
    assert {shard["files"]["outputs"]["sha256"] for shard in shards} <= fetched
    assert len(shards) == 7


@pytest.mark.faults
def test_a_run_that_is_killed_goes_on_with_the_same_mixtures(store, tmp_path, tmp_path_factory):
    """Rows of mixtures, whose partners and weights follow from the view; killed in the second epoch."""
    folder = store("teach.views=6", "teach.clips_per_shard=16", *MIXED)
    values = [*small.SIZES, f"models={{student={{arch={small.VIT}}}}}", f"edges=[{edge_of(folder)}]", *AUGMENT, *MIXED]
    values += ["schedule={kind='mutual', burn_in=0, steps=14}", "train.checkpoint_every=5"]
    values += [f"data.cache={tmp_path_factory.getbasetemp()}/clips"]
    command = ["run", "demo", "--local", "--json", "--tracking", "none", *sets(*values), "--storage"]
    assert killed.antiphon([*command, str(tmp_path / "whole")], tmp_path / "undisturbed") == 0, errors(tmp_path)
    where = [str(tmp_path / "runs"), "--resume", "auto"]
    assert killed.antiphon([*command, *where], tmp_path / "out", Kill("after-marker", 2)) == -9, errors(tmp_path)
    assert killed.antiphon([*command, *where], tmp_path / "out") == 0, errors(tmp_path)
    undisturbed, resumed = outcome(tmp_path / "undisturbed"), outcome(tmp_path / "out")
    assert resumed["resumed_from_step"] == 10
    row = undisturbed["models"]["student"]
    assert resumed["models"]["student"] | {"checkpoint": ""} == row | {"checkpoint": ""}


def errors(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.err"))


@pytest.mark.parametrize(("settings", "of_store"), [(["augment.mixup=0.5"], []), (MIXED, ["teach.views=6", *MIXED])])
def test_a_run_that_is_stopped_goes_on_with_the_same_mixtures(settings, of_store, offline, store, start):
    """Mixtures of stored outputs, and stored outputs of mixtures, in consistent views: stopped within an epoch."""
    folder = store(*of_store[:1], *["teach.clips_per_shard=16"] * bool(of_store), *of_store[1:])
    recipe = offline(f"[{edge_of(folder)}]", "schedule.steps=14", *settings)
    undisturbed, stopped = start(recipe), start(recipe)
    assert loop(undisturbed) == "done"
    assert loop(stopped, until=11) == "preempted"
    resumed = start(recipe, checkpoints_of=stopped)
    assert (resumed.step, loop(resumed)) == (11, "done")
    assert weights(resumed) == weights(undisturbed)


def test_two_workers_learn_from_a_store_what_one_learns(offline, store, tmp_path):
    recipe = offline(
        f"[{edge_of(store())}]", "schedule.steps=6", "train.shards=2", "train.shard_size=4", *["augment.mixup=0.5"]
    )
    placed.run_here(recipe, tmp_path / "one" / "student", 0, 1, LocalFiles())
    codes = placed.train(tmp_path / "two", {"student": recipe}, workers=2)
    assert codes == [0, 0], [path.read_text()[-2000:] for path in (tmp_path / "two").glob("meet-*-errors-*")]
    one, two = (placed.records(tmp_path / name / "student") for name in ("one", "two"))
    assert [record.get("step") for record in one] == [record.get("step") for record in two]
    pairs = [pair for pair in zip(one, two, strict=True) if pair[0]["kind"] == "metrics"]
    assert sum("store-to-student/kd_loss" in pair[0]["values"] for pair in pairs) == 6
    for alone, shared in pairs:  # sums of two gradients are rounded, in which order does not matter
        assert shared["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)


def test_a_clip_that_is_drawn_twice_in_an_epoch_gets_the_rows_of_two_views(offline, store, teacher, start):
    run = start(offline(f"[{edge_of(store())}]", "data.sampling=balanced"))
    (stored,), (tagger, _) = run.stores.teachers.values(), load_tagger(teacher)
    again = 0
    for step in range(run.batches.steps_per_epoch):
        shard = run.batches.shard(step, 0)
        with torch.no_grad():
            live_BC = tagger(shard.mel(tagger.front_end))
        torch.testing.assert_close(stored.outputs(shard, {})["logits"], live_BC, rtol=2e-3, atol=2e-4)
        views = [stored_view(key, VIEWS) for key in shard.keys]
        assert views == [key.occurrence % VIEWS for key in shard.keys], "of epoch 0"
        again += np.count_nonzero(views)
    assert again > 5


BOTH = "{teacher='cnn', student='vit', weight=0.3}, {teacher='vit', student='cnn', weight=0.3}"
SCHEDULES: dict[str, tuple[str, str, list[tuple[tuple[str, ...], set[str]]]]] = {
    "generations": (
        "{kind='generations', order=['cnn', 'vit'], steps=3}",
        "{teacher='cnn', student='vit', weight=0.3}",
        [(("cnn",), {"store-to-cnn"}), (("vit",), {"cnn-to-vit", "store-to-vit"})],
    ),
    "per_sample": (
        "{kind='per_sample', burn_in=2, steps=3}",
        BOTH.replace("}", ", gate='better_on_clip'}"),
        [
            (("cnn", "vit"), {"store-to-cnn", "store-to-vit"}),
            (("cnn", "vit"), {"cnn-to-vit", "vit-to-cnn", "store-to-cnn", "store-to-vit"}),
        ],
    ),
    "one_way": (
        "{kind='one_way', teachers=['cnn'], teacher_steps=3, steps=3}",
        "{teacher='cnn', student='vit', weight=0.3}",
        [(("cnn",), {"store-to-cnn"}), (("vit",), {"cnn-to-vit", "store-to-vit"})],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_store_teaches_whoever_trains(kind, tiny, store, start):
    schedule, edges, expected = SCHEDULES[kind]
    stored = [edge_of(store(), student=name, weight=0.4) for name in ("cnn", "vit")]
    run = start(tiny("demo", f"edges=[{', '.join([edges, *stored])}]", f"schedule={schedule}", *AUGMENT))
    assert [(phase.trains, {edge.key for edge in phase.edges}) for phase in run.phases] == expected
    found = losses(run, "store-to-vit/kd_loss")
    assert len(found) == sum(phase.steps for phase in run.phases if "vit" in phase.trains)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_a_search_whose_trials_are_taught_by_a_store(searching, store, tmp_path):
    """The weight of the store's edge is searched; the finals' controls are not taught by it."""
    own = [f"edges=[{edge_of(store(), student='vit', weight=0.4)}]", "search.trials=2", "search.scheduler=none"]
    own += ["schedule={kind='mutual', burn_in=0, steps=12}", "search.repeats=1", *AUGMENT]
    found = run_command(searching("--search-id", "s", *sets(*own)))
    trials = results(tmp_path / "runs" / "s")
    assert (found["completed"], found["failed"], len(trials)) == (2, 0, 2)
    first, second = trials.values()
    assert first["settings"]["edges.0.weight"] != second["settings"]["edges.0.weight"]
    assert first["objective"] != second["objective"]
    assert {name.split("-")[0] for name in results(tmp_path / "runs" / "s", "finals")} == {"winner", "control"}
