"""A run's folder without the orchestrator: only the newest attempt may change it."""

from pathlib import Path

import pytest
import torch

from workloads.runtime import checkpoint
from workloads.runtime.checkpoint_store import LocalCheckpointStore, Superseded


def saved(tmp_path: Path, name: str, value: float = 1.0) -> Path:
    return checkpoint.write(tmp_path / "made" / name, tensors={"cnn": {"w": torch.tensor([value])}}, state={"step": 0})


def test_attempts_count_from_1_and_a_newer_one_supersedes_the_older(tmp_path: Path) -> None:
    old = LocalCheckpointStore(tmp_path / "run")
    old.publish(saved(tmp_path, "step-00000010-attempt-1"))
    new = LocalCheckpointStore(tmp_path / "run")
    assert (old.attempt, new.attempt) == (1, 2)
    for commit in (old.publish, old.deliver):
        with pytest.raises(Superseded, match="a newer attempt has resumed this run"):
            commit(saved(tmp_path, f"step-00000020-{commit.__name__}"))
    assert new.names() == ["step-00000010-attempt-1"]
    new.publish(saved(tmp_path, "step-00000020-attempt-2"))
    assert new.names() == ["step-00000020-attempt-2", "step-00000010-attempt-1"]


def test_a_tagger_of_an_older_attempt_is_replaced(tmp_path: Path) -> None:
    LocalCheckpointStore(tmp_path / "run").deliver(saved(tmp_path, "cnn", 1.0))
    uri = LocalCheckpointStore(tmp_path / "run").deliver(saved(tmp_path, "cnn", 2.0))
    assert checkpoint.read_tensors(Path(uri), "cnn")["w"].item() == 2.0
    assert not (Path(uri) / "cnn").exists()


def test_a_folder_without_a_marker_is_no_checkpoint(tmp_path: Path) -> None:
    store = LocalCheckpointStore(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000010-attempt-1").mkdir(parents=True)
    assert store.names() == []
