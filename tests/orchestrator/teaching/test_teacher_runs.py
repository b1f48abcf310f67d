"""`antiphon teach` with teachers that are models of a run: trained first, once, and gone on with after a stop."""

import json
from pathlib import Path

import pytest

from orchestrator.recipes.loader import load_recipe, load_teach_recipe
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from orchestrator.teaching.teacher_runs import with_finished_runs
from orchestrator.training import driver
from tests import small
from workloads.runtime.event_log import read_event_log

RUN = f"""
name = "short"
extends = "demo-teachers"
[data]
synthetic_clips = 100
clip_seconds = 1.0
[models]
cnn = {{ arch = {small.MN} }}
small = {{ arch = {small.VIT} }}
[schedule]
steps = 4
[train]
shard_size = 8
checkpoint_every = 2
"""


def settings_of(folder: Path) -> list[str]:
    """Changes of `teach-demo`: few short clips, and teachers of the run of `folder`/short.toml."""
    small = ["data.synthetic_clips=100", "data.clip_seconds=1.0", "teach.views=1"]
    return small + [f"teachers.{name}.uri=run:{folder}/short.toml/{name}" for name in ("cnn", "small")]


@pytest.fixture
def request_of(tmp_path: Path):
    (tmp_path / "short.toml").write_text(RUN)

    def make(*settings: str) -> TeachRequest:
        recipe = load_teach_recipe("teach-demo", [*settings_of(tmp_path), *settings])
        return TeachRequest(recipe, str(tmp_path / "store"), local=True, storage=str(tmp_path / "runs"))

    return make


def fill_quietly(request: TeachRequest) -> dict:
    return fill_store(request, on_shard=lambda *_: None, warn=lambda line: None)


def test_teachers_are_trained_once_and_gone_on_with_after_a_stop(request_of, tmp_path, monkeypatch, antiphon):
    with pytest.raises(ValueError, match=r"there is no finished run at .*runs/short; `antiphon teach` trains it"):
        with_finished_runs(request_of().recipe, str(tmp_path / "runs"))
    with monkeypatch.context() as stopped:
        stopped.setattr(driver.StopSignals, "requested", lambda self: True)
        first = fill_quietly(request_of())
    assert (first["status"], first["shards_written"]) == ("preempted", 0)
    assert fill_quietly(request_of())["rows"] == 100
    records = read_event_log(tmp_path / "runs/short/events.jsonl")
    assert [record["step"] for record in records if record["kind"] == "start"] == [0, 1]
    again = fill_quietly(request_of())
    assert (again["status"], again["shards_written"]) == ("done", 0)
    assert len(read_event_log(tmp_path / "runs/short/events.jsonl")) == len(records), "the run is not trained again"
    words = [word for setting in settings_of(tmp_path) for word in ("--set", setting)]
    verify = ["store", "verify", tmp_path / "store", "--json", "--hear", "teach-demo", *words, "--clips", 2]
    heard = json.loads(antiphon(*verify, "--storage", tmp_path / "runs").out)["heard"]
    assert (heard["clips"], heard["differing"]) == (2, [])
    elsewhere = antiphon(*verify, "--storage", tmp_path)
    assert (elsewhere.code, f"there is no finished run at {tmp_path}/short" in elsewhere.err) == (2, True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("run:demo", "teachers.cnn.uri = 'run:demo': must be run:RECIPE/MODEL"),
        ("run:demo/", "teachers.cnn.uri = 'run:demo/': must be run:RECIPE/MODEL"),
        ("run:demo/mn", "teachers.cnn.uri = 'run:demo/mn': its run: no model named 'mn'; the models are cnn, vit"),
        ("run:dmo/cnn", "teachers.cnn.uri = 'run:dmo/cnn': recipe 'dmo': neither a .toml or .json file nor shipped"),
        ("run:teach-demo/cnn", "recipe 'teach-demo': has teachers, so it fills a store"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(uri, message, request_of, monkeypatch):
    monkeypatch.setattr(driver, "run", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(ValueError, match=message):
        fill_quietly(request_of(f"teachers.cnn.uri={uri}"))


def test_the_shipped_teachers_hear_what_the_shipped_store_holds():
    run, store = load_recipe("demo-teachers"), load_teach_recipe("teach-demo")
    assert (run.data, run.augment, run.compare, run.edges) == (store.data, store.augment, False, ())
    assert [teacher.of_run for teacher in store.teachers.values()] == [("demo-teachers", name) for name in run.models]
