"""The URI of a storage for runs: once a local folder, once S3."""

import pytest


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, monkeypatch) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    server = request.getfixturevalue("s3_server")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
    server.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"
