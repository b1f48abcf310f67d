"""A place for runs, once local and once on S3."""

import pytest


@pytest.fixture(params=["local", "s3"])
def home(request, tmp_path, monkeypatch) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    server = request.getfixturevalue("s3_server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
    server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"
