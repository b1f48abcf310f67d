"""Tracking URIs: what MLflow and records get of one that holds a password."""

import pytest
from filelock import FileLock, Timeout

from orchestrator.tracking.uri import creation_lock, run_page, run_path, split_credentials, ui_command, with_secret


def test_mlflow_gets_user_and_password_by_its_environment():
    server, credentials = split_credentials("https://team:p%40ss@host:5000/mlflow")
    assert server == "https://host:5000/mlflow"
    assert credentials == {"MLFLOW_TRACKING_USERNAME": "team", "MLFLOW_TRACKING_PASSWORD": "p@ss"}


def test_what_a_uri_leaves_empty_keeps_its_value_in_the_environment():
    assert split_credentials("https://alice@host") == ("https://host", {"MLFLOW_TRACKING_USERNAME": "alice"})
    assert split_credentials("https://:p@host") == ("https://host", {"MLFLOW_TRACKING_PASSWORD": "p"})
    assert split_credentials("https://me@corp.com:p@host") == (
        "https://host",
        {"MLFLOW_TRACKING_USERNAME": "me@corp.com", "MLFLOW_TRACKING_PASSWORD": "p"},
    )


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "postgresql://u:p@h/db", "sqlite:////a@b/mlflow.db", "none"])
def test_other_uris_stay(uri):
    assert split_credentials(uri) == (uri, {})


def test_the_command_that_opens_a_server_holds_no_password():
    assert ui_command("http://team:secret@host:5000").endswith(
        " 'http://host:5000/#/experiments?workflowType=machine_learning'"
    )


def test_a_runs_page_opens_as_training_of_models():
    path = run_path("12", "a1b2")
    page = "#/experiments/12/runs/a1b2"
    assert run_page(path, server="http://host:5000/") == f"http://host:5000/{page}?workflowType=machine_learning"
    assert run_page(path, file="report.html") == f"{page}/artifacts/report.html?workflowType=machine_learning"


def test_a_recorded_uri_without_its_secret_needs_the_same_uri_again(monkeypatch):
    recorded = "postgresql://u:***@h/db"
    for given in ("", "http://host:5000", "postgresql://u:p@other/db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        with pytest.raises(ValueError, match=r"tracking 'postgresql://u:\*\*\*@h/db': the secret .* is not stored"):
            with_secret(recorded)
        assert with_secret("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://u:p@h/db")
    assert with_secret(recorded) == "postgresql://u:p@h/db"


def test_one_process_at_a_time_creates_a_database(tmp_path):
    other = FileLock(tmp_path / "new" / "mlflow.db.lock", timeout=0)
    with creation_lock(f"sqlite:///{tmp_path}/new/mlflow.db?timeout=9"), pytest.raises(Timeout):
        other.acquire()
    with other, creation_lock("http://host"):
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
