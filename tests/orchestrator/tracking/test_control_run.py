"""The untaught controls of a run are a child run in MLflow, with their students' metric names."""

from mlflow import MlflowClient

from orchestrator.tracking.control_run import split_controls
from orchestrator.tracking.mlflow_run import open_destination
from workloads.runtime.event_log import EventLog, read_event_log

CONTROLS = {"vit_untaught": "vit"}
RUN = {
    "kind": "run",
    "run_id": "demo-1",
    "experiment": "antiphon",
    "name": "demo",
    "params": {"models.vit.control_of": "", "models.vit_untaught.control_of": "vit", "train.seed": "3"},
    "tags": {"schedule": "alternate"},
}
ROW = {
    "test": {"mAP": 0.5},
    "params": 7,
    "steps_taught": 0,
    "steps_learned": 4,
    "checkpoint": "c",
    "weights_sha256": "ab",
}
COMPARED = {"taught": 0.6, "untaught": 0.5, "difference": 0.1, "interval": [0.05, 0.15]}
LOG = [
    RUN,
    {"kind": "metrics", "step": 1, "values": {"vit/val/mAP": 0.1, "vit_untaught/val/mAP": 0.2}},
    {"kind": "metrics", "step": 2, "values": {"vit/loss": 0.3}},
    {"kind": "result", "steps": 4, "models": {"vit_untaught": ROW}},
    {"kind": "comparison", "step": 4, "models": {"vit": COMPARED | {"metric": "mAP", "log_loss": COMPARED}}},
    {"kind": "end", "status": "done", "error": "", "mistake": False},
]


def test_a_record_without_controls_stays_as_it_is():
    for record in LOG[1:]:
        assert list(split_controls(record, {})) == [record]
    assert list(split_controls(LOG[2], CONTROLS)) == [LOG[2]]


def test_curves_of_both_have_one_name(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with EventLog(tmp_path / "events.jsonl") as event_log:
        for record in LOG:
            event_log.append(record)
    for _ in range(2):  # a replayer that begins anew sends nothing twice
        open_destination(tmp_path / "events.jsonl", uri).log_records(read_event_log(tmp_path / "events.jsonl"))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("antiphon").experiment_id])
    assert len(runs) == 2
    by_name = {run.info.run_name: run for run in runs}
    parent, child = by_name["demo"], by_name["demo-untaught"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert [run.info.status for run in (parent, child)] == ["FINISHED", "FINISHED"]
    assert parent.data.metrics == {
        "vit/val/mAP": 0.1,
        "vit/loss": 0.3,
        **{f"vit/compare/{metric}/{key}": COMPARED.get(key, value) for metric in ("mAP", "log_loss") for key, value in
           (("difference", 0.1), ("low", 0.05), ("high", 0.15))},
    }  # fmt: skip
    assert child.data.metrics == {
        "vit/val/mAP": 0.2,
        "vit/test/mAP": 0.5,
        "vit/params": 7,
        "vit/steps_taught": 0,
        "vit/steps_learned": 4,
    }
    assert child.data.params["train.seed"] == "3"
    assert client.search_registered_models() == []  # a control is not registered
