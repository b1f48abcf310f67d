"""`--resume auto`: which run a repeated command finds, also where it is started twice at once."""

import threading
from dataclasses import replace

import pytest

from orchestrator.recipes.loader import load_recipe
from orchestrator.runs.lease import Driver
from orchestrator.runs.resume import OpenedRun, open_run
from orchestrator.storage import object_store
from tests.drivers import ended_process
from workloads.runtime.checkpoint_store import AlreadyDriven


def open_auto(storage: str, *, run_id: str = "", seed: int = 0, driver: Driver | None = None) -> OpenedRun:
    recipe = load_recipe("demo", [f"train.seed={seed}"])
    return open_run(
        recipe,
        storage=storage,
        run_id=run_id,
        resume="auto",
        tracking="none",
        driver=driver or ended_process(),
        patience_s=0,
    )


def test_it_continues_the_unfinished_run_of_the_same_recipe_wherever_the_data_lies(storage):
    first = open_auto(storage).location
    assert open_auto(storage).location == first
    assert open_auto(storage, seed=1).location != first
    elsewhere = load_recipe("demo", ["data.cache=/elsewhere"])
    opened = open_run(
        elsewhere, storage=storage, run_id="", resume="auto", tracking="none", driver=ended_process(), patience_s=0
    )
    assert opened.location == first


def test_after_a_run_is_done_it_starts_the_next_one(storage):
    first = open_auto(storage).location
    object_store.put_text(object_store.join(first.uri, "outcome.json"), '{"status": "done"}')
    second = open_auto(storage).location
    assert second != first
    assert open_auto(storage).location == second


def test_with_an_id_it_means_that_run_created_continued_or_done(storage):
    first = open_auto(storage, run_id="nightly").location
    assert first.run_id == "nightly"
    open_auto(storage, run_id="newer")
    again = open_auto(storage, run_id="nightly")
    assert (again.location, again.outcome) == (first, None)
    assert again.attempt is not None
    object_store.put_text(object_store.join(first.uri, "outcome.json"), '{"status": "done", "steps_run": 7}')
    done = open_auto(storage, run_id="nightly")
    assert (done.location, done.attempt) == (first, None)
    assert done.outcome == {"status": "done", "steps_run": 0, "resumed_from_step": 7}
    with pytest.raises(ValueError, match=r"--resume 'nightly': the run was started with train\.seed = 0, and this"):
        open_auto(storage, run_id="nightly", seed=1)


def test_an_id_is_found_without_listing_the_other_runs(storage, monkeypatch):
    open_auto(storage, run_id="nightly")
    listed: list[str] = []
    list_names = object_store.list_names
    monkeypatch.setattr(object_store, "list_names", lambda uri: listed.append(uri) or list_names(uri))
    opened = open_auto(storage, run_id="nightly")
    assert set(listed) == {object_store.join(opened.location.uri, "attempts")}


@pytest.mark.parametrize("run_id", ["", "nightly"])
def test_started_twice_at_once_it_makes_one_run(storage, run_id):
    opened: list[OpenedRun] = []
    refused: list[str] = []

    def start() -> None:
        try:
            opened.append(open_auto(storage, run_id=run_id, driver=Driver()))
        except AlreadyDriven as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(opened), len(refused)) == (1, 3)
    runs = [name for name in object_store.list_names(storage) if not name.startswith(".")]
    assert runs == [opened[0].location.run_id]


def test_a_damaged_neighbour_blocks_nobody(storage, capsys):
    damaged, good = open_auto(storage).location, open_auto(storage, seed=1).location
    object_store.put_text(object_store.join(damaged.uri, "outcome.json"), '{"status": ')
    assert open_auto(storage, seed=1).location == good
    assert open_auto(storage).location not in (damaged, good)
    assert f"--resume auto: leaves out {damaged.uri}" in capsys.readouterr().err


def test_runs_of_other_recipes_are_not_read(storage, monkeypatch):
    others = [open_auto(storage, seed=seed).location.uri for seed in range(1, 4)]
    read: list[str] = []
    get_bytes = object_store.get_bytes
    monkeypatch.setattr(object_store, "get_bytes", lambda uri: read.append(uri) or get_bytes(uri))
    open_auto(storage)
    assert not [uri for uri in read for other in others if uri.startswith(other)]


def test_a_run_that_another_process_drives_is_left_to_it(storage):
    opened = open_auto(storage, driver=Driver())
    with pytest.raises(AlreadyDriven, match="is still working on it"):
        open_auto(storage, driver=replace(Driver(), token="another"))
    assert opened.attempt is not None
