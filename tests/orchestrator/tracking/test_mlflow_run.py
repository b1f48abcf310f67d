"""A run in MLflow that cannot be written to, and what the user is told."""

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.mlflow_run import MlflowRun


def test_a_deleted_experiment_is_named_with_its_address_and_the_way_back(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment("antiphon"))
    record = {
        "kind": "run",
        "t": 1,
        "run_id": "one",
        "experiment": "antiphon",
        "name": "demo",
        "params": {},
        "tags": {},
    }
    with pytest.raises(ValueError, match=rf"experiment 'antiphon' \(id 1\) at {uri} is deleted; restore it, .*--track"):
        MlflowRun(uri, record)
    client.restore_experiment("1")
    assert MlflowRun(uri, record).run_id
