"""Data of which no label is known: a student of a store trains, is delivered and is not scored; what needs scores is
refused."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_recipe
from orchestrator.search.validation import check_search_data
from orchestrator.training.driver import check_recipe_data, with_learnable_controls
from tests import small, stores
from tests.pages import Page
from tests.tiny_search import ANTIPHON, sets
from workloads.data.augment import VIEW_VERSION
from workloads.runtime.event_log import read_event_log

TRAIN, CLIPS = 12, 15


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest without tags, of which three clips are in the test fold, and a store of five tags for all clips."""
    folder = tmp_path_factory.mktemp("unlabelled")
    ids = [f"c{number:02}" for number in range(CLIPS)]
    rows = [f"{clip_id},{clip_id}.wav,{1 if number >= TRAIN else 2}" for number, clip_id in enumerate(ids)]
    (folder / "clips.csv").write_text("\n".join(["clip_id,path,fold", *rows]))
    for number, clip_id in enumerate(ids):
        samples = np.random.default_rng(number).uniform(-0.3, 0.3, 16_000)
        soundfile.write(folder / f"{clip_id}.wav", samples, 16_000)
    views = {"version": VIEW_VERSION, "augment": {"view_seed": 0}, "clip_seconds": 1.0, "rate": 16_000, "count": 1}
    stores.fill(str(folder / "store"), stores.about(tags=5, views=1) | {"views": views}, ids)
    return folder


@pytest.fixture
def settings(unlabelled: Path, tmp_path: Path) -> list[str]:
    return [
        *small.SIZES,
        f"data.manifest={unlabelled}/clips.csv",
        f"data.root={unlabelled}",
        "data.format=manifest",
        f"data.cache={unlabelled}/cache",
        "augment={}",
        f"models={{student={{arch={small.MN}}}}}",
        f"edges=[{{teacher='store:{unlabelled}/store', student='student', weight=1.0, view='clean'}}]",
        "schedule={kind='mutual', burn_in=0, steps=8}",
    ]


@pytest.mark.parametrize(("seconds", "views"), [(1.0, {"two": 2, "three": 3}), (0.5, {"two": 2, "three": 2})])
def test_stores_of_clean_clips_go_round_as_many_views_where_clips_are_cut(seconds, views, settings, start, tmp_path):
    """A row of a part of a clip belongs to the view that is cut so; rows of whole clips are of all views."""
    edges = []
    for name, count in (("two", 2), ("three", 3)):
        about = {"version": VIEW_VERSION, "augment": {"view_seed": 0}, "clip_seconds": seconds, "rate": 16_000}
        described = stores.about(tags=5, views=count) | {"views": about | {"count": count}}
        stores.fill(str(tmp_path / name), described, [f"c{number:02}" for number in range(CLIPS)])
        edges.append(
            f"{{teacher='store:{tmp_path}/{name}', student='student', weight=0.5, view='clean', name='{name}'}}"
        )
    own = [f"edges=[{', '.join(edges)}]", f"data.clip_seconds={seconds}"]
    run = start(load_recipe("demo", [*settings, *own]))
    assert {key: teacher.num_views for key, teacher in run.stores.teachers.items()} == views


def test_a_student_is_trained_and_delivered_and_nothing_is_scored(settings, unlabelled, antiphon, tmp_path):
    words = [word for setting in settings for word in ("--set", setting)]
    where = ["--storage", tmp_path, "--run-id", "one", "--json"]
    done = antiphon("run", "demo", *words, "--local", "--tracking", "none", *where)
    assert done.code == 0, done.err
    row = json.loads(done.out)["models"]["student"]
    assert (row["val"], row["test"], row["steps_learned"]) == ({}, {}, 8)
    assert "warning: column labelled: no clip has a label, so nothing is scored" in done.err
    assert "warning: column labelled: 3 clips are used nowhere" in done.err
    assert "no scores: no clip of the data has a label" in done.err
    assert [part for part in ("val", "test") if f"{part} mAP" in done.err] == []
    assert "step 8/8" in done.err, "without evaluations there is a line for each checkpoint"
    values = [record["values"] for record in read_event_log(tmp_path / "one/events.jsonl") if "values" in record]
    assert not [key for of_step in values for key in of_step if "/val/" in key]
    assert sum("store-to-student/agreement" in of_step for of_step in values) == 8
    page = Page((tmp_path / "one/report.html").read_text())
    assert "nothing was scored" in page.texts["unscored"]
    steps = ["steps learned", "steps as teacher"]
    assert page.tables["models"][0] == ["model", "family", *steps, "parameters", "checkpoint"]
    assert [cells[0] for cells in page.tables["models"][1:]] == ["student"]
    assert "meanings" not in page.tables
    data = [word for setting in settings if setting.startswith("data.") for word in ("--set", setting)]
    scored = antiphon("evaluate", row["checkpoint"], "--data", "demo", *data, "--part", "train")
    assert scored.code != 0
    assert "--part 'train': no clip of this data set has a label, so nothing can be scored" in scored.err
    checked = antiphon("data", "check", "demo", *words)
    assert checked.code == 0, checked.err
    assert "12 of 12 train clips (0.0% labelled), 3 left out" in checked.out
    assert antiphon("plan", "demo", *words).code == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compare=true", "compare = true: compares test scores, and no clip of the data has a label"),
        ("models.student.average.kind=best", "student.average.kind = 'best': is chosen by validation scores, and no"),
        ("data.unlabelled=leave_out", "data.unlabelled = 'leave_out': no clip of the data has a label"),
        ("schedule={kind='gated', burn_in=0, steps=8}", "schedule.kind = 'gated': its weights follow validation"),
        ("edges.0.weight=0.9", "no label of the 12 training clips is known, and student would learn from labels"),
    ],
)
def test_what_needs_scores_or_labels_is_refused_before_anything_starts(setting, message, settings):
    with pytest.raises(ValueError, match=message):
        check_recipe_data(with_learnable_controls(load_recipe("demo", [*settings, setting]), lambda line: None))


def test_a_search_is_refused(settings):
    recipe = load_recipe("demo", settings)
    with pytest.raises(ValueError, match="search: compares validation scores, and no clip of the data has a label"):
        check_search_data(recipe, recipe.train)


@pytest.fixture
def tagged(settings: list[str], tmp_path: Path) -> Callable[[str], list[str]]:
    """The same run on a table of these rows."""

    def make(table: str) -> list[str]:
        (tmp_path / "clips.csv").write_text(table)
        return [*settings, f"data.manifest={tmp_path}/clips.csv"]

    return make


def test_a_tag_that_the_store_lacks_is_named_as_such_before_anything_starts(tagged):
    recipe = load_recipe("demo", tagged("clip_id,path,tags\nc00,c00.wav,tag0;horn\n"))
    with pytest.raises(ValueError, match=r"tags horn: the store does not know them, .* or choose a store that knows"):
        check_recipe_data(recipe)


def test_clips_without_tags_are_not_taken_for_clips_without_labels(tagged):
    """An empty cell of a column tags says that a clip has none of the tags."""
    recipe = load_recipe("demo", tagged("clip_id,path,tags\nc00,c00.wav,\n"))
    with pytest.raises(ValueError, match=r"no clip has a tag \(column tags\); .* false in a column labelled"):
        check_recipe_data(recipe)


@pytest.mark.slow
def test_packed_clips_on_ray_give_the_same_student(settings, antiphon, tmp_path):
    words = [word for setting in settings for word in ("--set", setting)]
    where = ["--storage", tmp_path, "--json", "--tracking", "none"]
    plain = antiphon("run", "demo", *words, *where, "--local")
    assert plain.code == 0, plain.err
    data = [word for setting in settings if setting.startswith("data.") for word in ("--set", setting)]
    packed = antiphon("data", "pack", "demo", *data, "--out", tmp_path / "pack")
    assert packed.code == 0, packed.err
    of_pack = ["data.format=packed", "data.manifest=''", f"data.root={tmp_path}/pack"]
    on_ray = subprocess.run(
        [ANTIPHON, "run", "demo", *words, *sets(*of_pack), *map(str, where)], capture_output=True, text=True
    )
    assert on_ray.returncode == 0, on_ray.stderr[-3000:]
    expected, found = (json.loads(said)["models"]["student"] for said in (plain.out, on_ray.stdout))
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["test"] == {}
