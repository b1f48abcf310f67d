"""S3 servers for tests, started on free ports and stopped by pid; a plugin: `pytest_plugins` in tests/conftest.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import rgw, stack
from cluster.book import Book
from cluster.services import wait_until_up


@dataclass(frozen=True)
class S3Server:
    """An endpoint URL, the environment that its clients and their children need, and the folder of its record."""

    endpoint: str
    env: dict[str, str]
    folder: Path

    def client(self) -> Any:
        """A boto3 client with the server's credentials."""
        import boto3

        keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        credentials = {argument: self.env[name] for argument, name in keys.items()}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **credentials)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto: the shape of the API only. It accepts any credentials; there is no bucket yet."""
    yield from _served(tmp_path_factory.mktemp("s3"), "moto")


@pytest.fixture(scope="session")
def rgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph RGW: checks credentials, honours exclusive creates, survives kill -9. Skips where it is not installed."""
    try:
        rgw.check_installed()
    except ValueError as missing:
        pytest.skip(str(missing))
    yield from _served(tmp_path_factory.mktemp("rgw"), "rgw")


def _served(folder: Path, kind: str) -> Iterator[S3Server]:
    book = Book(folder)
    try:
        service = stack.S3_SERVERS[kind](book)
        wait_until_up(service, deadline_s=60)
        yield S3Server(endpoint=service.address, env={**stack.CHECKSUMS, **service.client_env}, folder=folder)
    finally:
        book = Book(folder)  # read again: a test may have restarted something
        for name in reversed(tuple(book.services)):
            book.stop(name)
