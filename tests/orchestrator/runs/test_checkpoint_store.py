"""A run's checkpoints: which one is resumed, which are kept, what a killed save leaves, which attempts may commit."""

import threading
from pathlib import Path

import pytest
import torch

from orchestrator.runs.checkpoint_store import BackgroundUploads, CheckpointStore, NewestAndBest, NewestAt
from orchestrator.runs.lease import Attempt, Driver, take_next, take_unconditionally
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.runtime import checkpoint
from workloads.runtime.checkpoint_store import Superseded


def store(attempt: Attempt, *, keep_last: int = 2) -> CheckpointStore:
    return CheckpointStore(attempt, retention=NewestAndBest(keep_last), patience_s=0)


def saved(tmp_path: Path, name: str, best_for: dict[str, float] | None = None) -> Path:
    state = {"step": 0, "best_for": best_for or {}}
    return checkpoint.write(tmp_path / "made" / name, tensors={"cnn": {"w": torch.ones(3)}}, state=state)


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def first(storage, driver) -> Attempt:
    return take_next(start(storage, driver), driver)


def start(storage: str, driver: Driver) -> str:
    from orchestrator.runs.lease import take_over

    run = object_store.join(storage, "run")
    take_over(run, driver)
    return run


def test_the_newest_and_each_models_best_are_kept(first, tmp_path):
    checkpoints = store(first)
    scores = [("cnn", 0.5), ("vit", 0.9), ("cnn", 0.7), ("cnn", 0.7), ("vit", 0.2), ("cnn", 0.1)]
    for step, (model, score) in enumerate(scores, start=1):
        checkpoints.publish(saved(tmp_path, f"step-{step:08d}-attempt-2", {model: score}))
    assert [name[:13] for name in checkpoints.names()] == [f"step-{step:08d}" for step in (6, 5, 3, 2)]
    assert not (tmp_path / "made" / "step-00000006-attempt-2").exists()  # publishing removes the local copy


def test_a_stop_leaves_the_removal_of_older_ones_to_the_next_attempt(first, driver, tmp_path):
    """Who preempts a run soon kills it: what is not needed to go on comes later."""
    stopped = []
    retention = NewestAndBest(1)
    checkpoints = CheckpointStore(first, retention=retention, patience_s=0, hurried=lambda: bool(stopped))
    for step in (1, 2, 3):
        stopped += ["SIGTERM"] * (step == 3)
        checkpoints.publish(saved(tmp_path, f"step-{step:08d}-attempt-2"))
    assert checkpoints.names() == ["step-00000003-attempt-2", "step-00000002-attempt-2"]
    second = CheckpointStore(take_next(first.run_uri, driver), retention=retention, patience_s=0)
    second.publish(saved(tmp_path, "step-00000004-attempt-3"))
    assert second.names() == ["step-00000004-attempt-3"]


def test_checkpoints_of_the_newest_attempt_come_first(first, driver, tmp_path):
    """Attempt 3 resumed from step 10; its step 15 has precedence over step 20, which attempt 2 committed meanwhile."""
    store(first).publish(saved(tmp_path, "step-00000010-attempt-2"))
    second = store(take_next(first.run_uri, driver))
    second.publish(saved(tmp_path, "step-00000015-attempt-3"))
    published_folders.publish(
        saved(tmp_path, "step-00000020-attempt-2"),
        object_store.join(first.run_uri, "checkpoints", "step-00000020-attempt-2"),
    )
    assert second.names() == ["step-00000015-attempt-3", "step-00000020-attempt-2", "step-00000010-attempt-2"]


def test_an_older_attempt_never_commits(first, driver, tmp_path):
    older = store(first)
    take_next(first.run_uri, driver)
    with pytest.raises(Superseded):
        older.publish(saved(tmp_path, "step-00000020-attempt-2"))
    with pytest.raises(Superseded):
        older.deliver(saved(tmp_path, "cnn"))
    assert older.names() == []
    assert published_folders.list_committed(object_store.join(first.run_uri, "models")) == []


def test_an_attempt_that_is_taken_over_during_its_upload_does_not_commit(first, driver, tmp_path, monkeypatch):
    older = store(first)
    original = object_store.filesystem

    def taken_over_during_upload(uri: str):
        fs, path = original(uri)
        if path.endswith("step-00000020-attempt-2"):  # the upload has started
            monkeypatch.setattr(object_store, "filesystem", original)
            take_next(first.run_uri, driver)
        return fs, path

    monkeypatch.setattr(object_store, "filesystem", taken_over_during_upload)
    with pytest.raises(Superseded):
        older.publish(saved(tmp_path, "step-00000020-attempt-2"))
    assert older.names() == []


def test_what_a_killed_save_left_is_removed(first, driver, tmp_path):
    store(first).publish(saved(tmp_path, "step-00000010-attempt-2"))
    partial = object_store.join(first.run_uri, "checkpoints", "step-00000020-attempt-2")
    object_store.put_text(object_store.join(partial, "cnn.safetensors"), "half of it")
    after = store(take_next(first.run_uri, driver))
    after.collect_garbage()
    assert after.names() == ["step-00000010-attempt-2"]
    assert object_store.list_names(object_store.join(first.run_uri, "checkpoints")) == ["step-00000010-attempt-2"]


def test_a_tagger_of_an_older_attempt_is_replaced_if_it_differs(first, driver, tmp_path):
    store(first).deliver(saved(tmp_path, "cnn", {"cnn": 0.1}))
    uri = store(take_next(first.run_uri, driver)).deliver(saved(tmp_path, "cnn", {"cnn": 0.2}))
    folder = published_folders.fetch(uri, tmp_path / "back")
    assert checkpoint.read_state(folder)["best_for"] == {"cnn": 0.2}


def test_an_unavailable_store_is_reported_in_one_line(monkeypatch, tmp_path, capfd):
    """Nothing listens at that address: the call is repeated until `patience_s` has passed."""
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    unavailable = CheckpointStore(Attempt("s3://nowhere/run", 1, Driver()), retention=NewestAndBest(2), patience_s=3)
    with pytest.raises(OSError, match=r"s3://nowhere/run/checkpoints.*127\.0\.0\.1:9") as raised:
        unavailable.names()
    assert "\n" not in str(raised.value)
    assert "trying again" in capfd.readouterr().err


def test_background_uploads_finish_before_the_end_and_their_failure_is_raised(first, driver, tmp_path):
    with BackgroundUploads(store(first)) as background:
        background.publish(saved(tmp_path, "step-00000010-attempt-2"))
        background.publish(saved(tmp_path, "step-00000020-attempt-2"))
    assert len(store(first).names()) == 2
    take_next(first.run_uri, driver)
    with pytest.raises(Superseded), BackgroundUploads(store(first)) as background:
        background.publish(saved(tmp_path, "step-00000030-attempt-2"))


def test_a_slow_store_holds_training_back_when_the_next_checkpoint_is_due(first, tmp_path, monkeypatch):
    """So at most two checkpoints lie on the local disk: the one that is uploaded, and the one that waits."""
    checkpoints, may_upload = store(first), threading.Event()
    publish = checkpoints.publish
    monkeypatch.setattr(checkpoints, "publish", lambda folder: may_upload.wait() and publish(folder))
    with BackgroundUploads(checkpoints) as background:
        background.publish(saved(tmp_path, "step-00000010-attempt-2"))
        next_one = saved(tmp_path, "step-00000020-attempt-2")
        training = threading.Thread(target=background.publish, args=[next_one])
        training.start()
        training.join(0.3)
        assert training.is_alive()
        may_upload.set()
        training.join()
    assert len(checkpoints.names()) == 2


def test_a_superseded_attempt_removes_nothing(first, driver, tmp_path):
    """Neither a given checkpoint, nor what garbage collection would remove."""
    older = store(first, keep_last=1)
    older.publish(saved(tmp_path, "step-00000010-attempt-2"))
    partial = object_store.join(first.run_uri, "checkpoints", "step-00000020-attempt-3", "cnn.safetensors")
    object_store.put_text(partial, "the newer attempt is uploading this")
    newer = store(take_next(first.run_uri, driver))
    for change in (lambda: older.remove("step-00000010-attempt-2"), older.collect_garbage):
        with pytest.raises(Superseded):
            change()
    assert newer.names() == ["step-00000010-attempt-2"]
    assert object_store.exists(partial)


def test_a_trial_keeps_its_newest_rungs_and_its_older_attempts_cannot_commit(storage, driver, tmp_path):
    trial = object_store.join(storage, "search", "trials", "0000")
    older = CheckpointStore(take_unconditionally(trial, driver), retention=NewestAt((4, 8, 12), 2), patience_s=0)
    for step in (2, 4, 8):
        older.publish(saved(tmp_path, f"step-{step:08d}-attempt-1"))
    assert older.newest_uri == object_store.join(trial, "checkpoints", "step-00000008-attempt-1")
    newer = CheckpointStore(take_unconditionally(trial, driver), retention=NewestAt((4, 8, 12), 2), patience_s=0)
    newer.publish(saved(tmp_path, "step-00000012-attempt-2"))
    assert newer.names() == ["step-00000012-attempt-2", "step-00000008-attempt-1"]  # 2 is no rung, 4 was the oldest
    with pytest.raises(Superseded):
        older.publish(saved(tmp_path, "step-00000012-attempt-1"))
    with pytest.raises(Superseded):
        older.deliver(saved(tmp_path, "cnn"))


def test_a_trial_may_start_from_another_ones_checkpoint(storage, driver, tmp_path):
    one, other = (object_store.join(storage, "search", "trials", name) for name in ("0000", "0001"))
    source = CheckpointStore(take_unconditionally(one, driver), retention=NewestAt((4,)), patience_s=0)
    source.publish(saved(tmp_path, "step-00000004-attempt-1", {"cnn": 0.5}))
    target = CheckpointStore(
        take_unconditionally(other, driver), retention=NewestAt((4, 8)), patience_s=0, start=source.newest_uri
    )
    assert target.names() == ["step-00000004-attempt-1"]
    state = checkpoint.read_state(target.fetch("step-00000004-attempt-1", tmp_path / "work"))
    assert state["best_for"] == {"cnn": 0.5}


def test_of_a_step_that_several_attempts_reached_all_checkpoints_stay(storage, driver, tmp_path):
    """A process lost twice after it committed step 2: step 1, from which another trial may start, is still there."""
    trial = object_store.join(storage, "search", "trials", "0002")
    for attempt, steps in ((1, (1, 2)), (2, (2,)), (3, (2, 3))):
        store = CheckpointStore(take_unconditionally(trial, driver), retention=NewestAt((1, 2, 3), 3), patience_s=0)
        for step in steps:
            store.publish(saved(tmp_path, f"step-{step:08d}-attempt-{attempt}"))
    assert [name[12:13] for name in store.names()] == ["3", "2", "2", "2", "1"]


def test_a_trial_that_keeps_no_checkpoint_has_none_to_resume_from(storage, driver, tmp_path):
    trial = object_store.join(storage, "search", "trials", "0003")
    store = CheckpointStore(take_unconditionally(trial, driver), retention=NewestAt(()), patience_s=0)
    store.publish(saved(tmp_path, "step-00000004-attempt-1"))
    assert store.names() == []
    assert not object_store.exists(object_store.join(trial, "checkpoints"))


def test_an_older_attempt_cannot_touch_what_a_newer_one_has_delivered(first, driver, tmp_path, monkeypatch):
    """It was the newest when it checked; before its next request another attempt claims the run and delivers."""
    older, newer_tagger, original = store(first), saved(tmp_path, "cnn", {"cnn": 0.9}), published_folders.publish

    def newer_delivers_first(folder, uri, **options):
        monkeypatch.setattr(published_folders, "publish", original)
        store(take_next(first.run_uri, driver)).deliver(newer_tagger)
        return original(folder, uri, **options)

    monkeypatch.setattr(published_folders, "publish", newer_delivers_first)
    older_tagger = checkpoint.write(
        tmp_path / "older" / "cnn", tensors={"cnn": {"w": torch.zeros(2)}}, state={"best_for": {"cnn": 0.1}}
    )
    with pytest.raises(Superseded):
        older.deliver(older_tagger)
    uri = object_store.join(first.run_uri, "models", "cnn")
    assert checkpoint.read_state(published_folders.fetch(uri, tmp_path / "back"))["best_for"] == {"cnn": 0.9}
    assert FsspecFiles().published_folder(uri) == object_store.join(uri, "attempt-3")
