"""What MLflow's pages show of a run beside its numbers: kind of experiment, description, data set, files.

Runs in the replayer process, or in that of `antiphon track replay`. A file that cannot be stored is said in the log and
holds nothing up: the run's folder has it.
"""

import os
from pathlib import Path
from typing import Any

from orchestrator.storage.retry import describe_error
from orchestrator.tracking.log_reader import log_line
from orchestrator.tracking.record_mapping import RECIPE_FILE, RUN_ID_TAG, DataInput, RunRecord, note_of
from orchestrator.tracking.uri import run_path, split_credentials
from workloads.runtime.json_files import json_text, parse_json
from workloads.runtime.redaction import redacted

# Whether an experiment is of training models (runs, charts, models), or an application of generative AI, where runs are
# evaluations. Its own Python package has no name for it. Pages of 3.17 keep it, and follow the address (TRAINING_VIEW).
KIND_TAG, TRAINING = "mlflow.experimentKind", "custom_model_development"


def mark_as_training(client: Any, experiment_id: str) -> None:
    """Say of the experiment that it trains models, unless a person or an earlier run has said what it is."""
    if KIND_TAG not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, KIND_TAG, TRAINING)


def describe_run(run: Any, record: dict[str, Any]) -> str:
    """The description of a run, with links to its files."""
    return note_of(record, run_path(run.info.experiment_id, run.info.run_id))


def log_data(client: Any, run_id: str, data: DataInput, table: dict[str, Any]) -> None:
    """Name the data set as the run's input; `table` is the recipe's about data, empty where it is not recorded."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    root = str(table.get("root", ""))
    name = " ".join(filter(None, (str(table.get("format", "clips")), Path(root).name)))
    source = {"uri": redacted(root)} if root else {"generated": table.get("format", "")}
    dataset = Dataset(
        name=name,
        digest=data.digest,
        source_type="local" if "://" not in root else root.split("://")[0],
        source=json_text(source),
        profile=json_text(data.profile),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def store_recipe(client: Any, run_id: str, recipe: dict[str, Any]) -> None:
    """Store the resolved recipe among the run's files; again for each attempt, with the same content."""
    _store(RECIPE_FILE, lambda: client.log_text(run_id, json_text(recipe, indent=2), RECIPE_FILE))


def store_report(event_log: Path, uri: str, report: Path) -> None:
    """Store a run's report among its files in the MLflow at `uri`, where the run must exist; replaces an older one."""
    from mlflow import MlflowClient

    server, credentials = split_credentials(uri)
    os.environ.update(credentials)
    with event_log.open("rb") as file:
        record = parse_json(file.readline(), f"{event_log}, line 1", RunRecord)
    client = MlflowClient(tracking_uri=server)

    def send() -> None:
        experiment = client.get_experiment_by_name(record["experiment"])
        runs = (
            client.search_runs([experiment.experiment_id], f"tags.`{RUN_ID_TAG}` = '{record['run_id']}'")
            if experiment
            else []
        )
        if not runs:
            raise ValueError(f"MLflow has no run {record['run_id']} in experiment {record['experiment']!r}")
        client.log_artifact(runs[0].info.run_id, str(report))

    _store(report.name, send)


def _store(name: str, send: Any) -> None:
    try:
        send()
    except Exception as error:  # HTTP client and artifact store each raise their own types
        log_line(f"{name} is not among the run's files in MLflow: {redacted(describe_error(error))[:300]}")
