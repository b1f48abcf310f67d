"""Every published model gets one version, the best gets the alias, and the weights stay where they are."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.runs.backfill import replay_run
from orchestrator.storage import published_folders
from orchestrator.tracking.log_reader import TrackingUnavailable
from orchestrator.tracking.model_registry import requirements
from orchestrator.tracking.replayer import MLFLOW_ENVIRONMENT
from orchestrator.tracking.uri import sqlite_uri
from tests.servers import S3Server
from workloads.config.architectures import MN
from workloads.config.recipe import Model
from workloads.models.tagger import build_tagger
from workloads.runtime import checkpoint
from workloads.runtime.event_log import EventLog

ROOT = Path(__file__).parents[3]
TAGS = ("dog", "rain", "saw")
SAMPLES = 16_000


@pytest.fixture(autouse=True)
def _replayer_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MLFLOW_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests, since creating one takes seconds; each test uses another recipe name."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def uri(home: Path) -> str:
    return sqlite_uri(home)


@pytest.fixture(scope="module")
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """Publish a small tagger, as the end of a run does."""

    def publish(name: str = "cnn", *, seed: int = 0) -> Path:
        shape = {"tags": TAGS, "labels": "single", "clip_seconds": 1.0, "clip_rate": 16_000}
        model = Model(arch=MN(family="mn", width=0.1))
        tagger = build_tagger(model, name=name, seed=seed, **shape)  # type: ignore[arg-type]
        shape["long_clips"] = "windows"
        state = {"kind": "tagger", "name": name, "model": {"arch": {"family": "mn", "width": 0.1}}, **shape}
        return checkpoint.write(tmp_path / f"{name}-{seed}", tensors={"weights": tagger.state_dict()}, state=state)

    return publish


def _run(folder: Path, recipe: str, run_id: str, tagger: Path | str, accuracy: float | None) -> Path:
    """The records of a run that published one model, `cnn`."""
    val = {} if accuracy is None else {"accuracy": accuracy}
    row = {"params": 1, "steps_taught": 2, "steps_learned": 3, "val": val, "test": {"accuracy": 0.25}}
    row |= {"checkpoint": str(tagger), "weights_sha256": "ab12"}
    run = {"kind": "run", "run_id": run_id, "experiment": "antiphon", "name": recipe, "params": {}, "tags": {}}
    with EventLog(folder / run_id / "events.jsonl") as event_log:
        event_log.append(run)
        event_log.append({"kind": "result", "steps": 7, "models": {"cnn": row}})
        event_log.append({"kind": "end", "status": "done", "error": "", "mistake": False})
    return folder / run_id


def _versions(client: Any, name: str) -> dict[str, str]:
    """Version -> its run, oldest first."""
    versions = client.search_model_versions(f"name='{name}'")
    return {str(v.version): v.tags["antiphon.run_id"] for v in sorted(versions, key=lambda v: int(v.version))}


def _status(client: Any, run_id: str) -> tuple[str, float]:
    experiment = client.get_experiment_by_name("antiphon")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`antiphon.run_id` = '{run_id}'")
    return run.info.status, run.data.metrics["cnn/test/accuracy"]


def test_best_moves_to_a_better_version_only(
    tmp_path: Path, uri: str, client: Any, published: Callable[..., Path]
) -> None:
    tagger, best = published(), []
    runs = [_run(tmp_path, "moves", f"r{n}", tagger, value) for n, value in enumerate((0.5, 0.4, 0.5, 0.7, None))]
    for run in runs:
        replay_run(str(run), uri)
        best.append(client.get_model_version_by_alias("moves-cnn", "best").version)
    assert [int(version) for version in best] == [1, 1, 1, 4, 4]
    replay_run(str(runs[0]), uri)
    assert _versions(client, "moves-cnn") == {"1": "r0", "2": "r1", "3": "r2", "4": "r3", "5": "r4"}
    assert int(client.get_model_version_by_alias("moves-cnn", "best").version) == 4


def test_a_version_refers_to_the_weights_and_holds_none(
    tmp_path: Path, uri: str, client: Any, published: Callable[..., Path]
) -> None:
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model as MlflowModel

    tagger = published()
    replay_run(str(_run(tmp_path, "refers", "refers-1", tagger, 0.5)), uri)
    version = client.get_model_version("refers-cnn", "1")
    expected = {"antiphon.recipe": "refers", "antiphon.checkpoint": str(tagger), "antiphon.weights_sha256": "ab12"}
    expected |= {"antiphon.run_id": "refers-1", "val.accuracy": "0.5", "test.accuracy": "0.25"}
    assert expected.items() <= version.tags.items()
    folder = Path(download_artifacts(version.source, dst_path=str(tmp_path / "copy")))
    model = MlflowModel.load(folder)
    assert model.signature is not None
    assert model.signature.outputs.input_names() == list(TAGS)
    assert str(model.signature.inputs) == f"[Tensor('float32', (-1, {SAMPLES}))]"
    example = model.load_input_example(str(folder))
    assert (example.shape, example.dtype) == ((1, SAMPLES), np.float32)
    assert np.abs(example).max() == 0.25
    endings = {path.suffix for path in folder.rglob("*") if path.is_file() and path.name != "MLmodel"}
    assert endings == {".py", ".json", ".yaml", ".txt"}


def test_weights_in_an_object_store_stay_there(
    tmp_path: Path,
    uri: str,
    client: Any,
    published: Callable[..., Path],
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow
    from s3fs import S3FileSystem

    for key, value in s3_server.env.items():
        monkeypatch.setenv(key, value)
    s3_server.client().create_bucket(Bucket="registry")
    there = published_folders.publish(published(), "s3://registry/runs/bucket-1/models/cnn")
    replay_run(str(_run(tmp_path, "bucket", "bucket-1", there, 0.5)), uri)
    S3FileSystem.clear_instance_cache()
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/bucket-cnn@best")
    assert model.model_config["checkpoint"] == there
    assert model.predict(np.zeros((1, SAMPLES), np.float32)).shape == (1, 3)


def test_a_model_refuses_other_weights_than_the_registered_ones(
    tmp_path: Path, uri: str, published: Callable[..., Path]
) -> None:
    import mlflow

    mlflow.set_tracking_uri(uri)
    tagger, other = published(), published(seed=1)
    replay_run(str(_run(tmp_path, "other", "other-1", tagger, 0.5)), uri)
    table = mlflow.pyfunc.load_model("models:/other-cnn@best").predict(np.zeros((2, SAMPLES), np.float32))
    assert list(table.columns) == list(TAGS)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-6)
    for part in other.iterdir():
        (tagger / part.name).write_bytes(part.read_bytes())
    with pytest.raises(ValueError, match="other weights than those that were registered"):
        mlflow.pyfunc.load_model("models:/other-cnn@best")


def test_weights_replaced_by_a_later_attempt_replace_the_version(
    tmp_path: Path, uri: str, client: Any, published: Callable[..., Path]
) -> None:
    replay_run(str(_run(tmp_path, "again", "again-1", published(), 0.5)), uri)
    replay_run(str(_run(tmp_path, "again", "again-1", published(seed=1), 0.4)), uri)
    assert _versions(client, "again-cnn") == {"2": "again-1"}
    assert int(client.get_model_version_by_alias("again-cnn", "best").version) == 2


def test_a_replaced_version_stays_while_somebodys_alias_points_to_it(
    tmp_path: Path, uri: str, client: Any, published: Callable[..., Path]
) -> None:
    """It is no candidate for `best` any more, although its score was higher."""
    replay_run(str(_run(tmp_path, "serving", "serving-1", published(), 0.5)), uri)
    client.set_registered_model_alias("serving-cnn", "production", "1")
    replacement = published(seed=1)
    for _ in range(2):
        replay_run(str(_run(tmp_path, "serving", "serving-1", replacement, 0.4)), uri)
        assert _versions(client, "serving-cnn") == {"1": "serving-1", "2": "serving-1"}
        assert int(client.get_model_version_by_alias("serving-cnn", "production").version) == 1
        assert int(client.get_model_version_by_alias("serving-cnn", "best").version) == 2


@pytest.mark.parametrize("damage", ["bytes", "marker", "gone"])
def test_a_damaged_tagger_is_reported_and_everything_else_is_sent(
    tmp_path: Path,
    uri: str,
    client: Any,
    published: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    tagger = published()
    if damage == "bytes":
        with (tagger / "weights.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")
    elif damage == "marker":
        (tagger / "COMMITTED.json").unlink()
    else:
        tagger = tagger / "nowhere"
    replay_run(str(_run(tmp_path, damage, f"{damage}-1", tagger, 0.5)), uri)
    assert f"{damage}-cnn is not registered: ValueError" in capsys.readouterr().err
    assert _status(client, f"{damage}-1") == ("FINISHED", 0.25)
    assert _versions(client, f"{damage}-cnn") == {}


def test_a_name_that_mlflow_refuses_loses_only_the_version(
    tmp_path: Path, uri: str, client: Any, published: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    replay_run(str(_run(tmp_path, "team:demo", "refused-1", published(), 0.5)), uri)
    assert "team:demo-cnn is not registered, MLflow refuses it: " in capsys.readouterr().err
    assert _status(client, "refused-1") == ("FINISHED", 0.25)


def test_an_unavailable_artifact_store_is_retried(
    tmp_path: Path, home: Path, uri: str, client: Any, published: Callable[..., Path]
) -> None:
    run = tmp_path / "away-1"
    with EventLog(run / "events.jsonl") as event_log:
        event_log.append(
            {"kind": "run", "run_id": run.name, "experiment": "antiphon", "name": "away", "params": {}, "tags": {}}
        )
    obstacle = home / "artifacts" / replay_run(str(run), uri)["mlflow_run_id"]
    obstacle.write_text("a file where the run's artifacts belong")
    (run / "events.jsonl").unlink()
    _run(tmp_path, "away", run.name, published(), 0.5)
    with pytest.raises(TrackingUnavailable):
        replay_run(str(run), uri)
    command = [sys.executable, "-m", "orchestrator.tracking", str(run / "events.jsonl"), "--grace", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    replayer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert replayer.returncode == 3, replayer.stderr
    assert replayer.stderr.splitlines()[-1].endswith(f"send it with: antiphon track replay {run}")
    assert _status(client, run.name) == ("FINISHED", 0.25), "metrics and status do not wait for the registry"
    assert _versions(client, "away-cnn") == {}
    obstacle.unlink()
    replay_run(str(run), uri)
    assert _versions(client, "away-cnn") == {"1": run.name}


def test_the_requirements_are_versions_that_a_package_index_has() -> None:
    local, remote = requirements("/runs/models/cnn"), requirements("s3://bucket/models/cnn")
    assert set(remote) - set(local) == {next(line for line in remote if line.startswith("s3fs=="))}
    assert not [line for line in remote if "+" in line or line.count("==") != 1]
