"""Files on local disks and object stores, addressed by URI; the only module that uses fsspec and s3fs.

Any number of processes may call these functions at once; only `create_exclusively` decides between them. None retries:
wrap calls in `retry_while_unavailable`. Credentials and endpoints come from the process environment (AWS_*), never as
arguments.
"""

import os
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import fsspec

from orchestrator.storage.retry import (
    Unavailable,
    describe_error,
    is_transient,
    print_status,
    s3_error,
)
from workloads.runtime.atomic_files import UNFINISHED, replacing
from workloads.runtime.json_files import parse_json
from workloads.runtime.opener import read_own_file
from workloads.runtime.redaction import require_no_secret

SCHEMES = ("file://", "s3://")
READ_RETRY_S = 60.0  # how long reads of data are retried; for what a run writes the user's --patience counts
# Newer AWS SDKs send checksums that older S3 servers answer with 411; every process that uses S3 needs these.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


def filesystem(uri: str, *, patience_s: float = 0.0) -> tuple[Any, str]:
    """The file system of a URI and the path within it; a plain path is a local one.

    ValueError for other schemes than s3: a URI may come from a file of somebody else, and fsspec knows schemes that
    read other URIs, send requests with this process's credentials, or hold data in memory only. ValueError too for a
    URI that holds a secret: it would be stored wherever the URI is.

    With `patience_s` the S3 client itself retries each request for about that long: for callers outside this project,
    such as Ray, which do not use `retry_while_unavailable`.
    """
    options: dict[str, Any] = {}
    _require_named(uri)
    if is_local(uri) and "::" in uri:  # a file's name, which fsspec would take for a chain of URIs
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
    if not is_local(uri):
        require_no_secret(uri, "URI")
    if uri.startswith("s3://"):
        retries = {"mode": "standard", "total_max_attempts": _max_attempts(patience_s)}
        options = {"use_listings_cache": False, "config_kwargs": {"retries": retries}}
    if "::" in uri or ("://" in uri and not uri.startswith(SCHEMES)):
        raise ValueError(f"URI {uri!r}: no such storage; use a local path or s3://bucket/path")
    fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri), **options)
    return fs, path


def _max_attempts(patience_s: float) -> int:
    """The number of attempts by which botocore fills that time; between two it sleeps random() * min(2**n, 20) s.

    One by default: botocore's attempts within s3fs's own would block each call to a server that hangs for 7 minutes.
    """
    attempts, expected_s = 1, 0.0
    while expected_s < patience_s:
        expected_s += min(2 ** (attempts - 1), 20) / 2
        attempts += 1
    return attempts


def join(uri: str, *parts: str) -> str:
    """The URI of a path below another URI; ValueError where that is empty."""
    _require_named(uri)
    return "/".join([uri.rstrip("/"), *parts])


def _require_named(uri: str) -> None:
    if not uri:  # a variable that is not set; what lies below it would be in the root folder
        raise ValueError("URI '': is empty; give a folder or s3://bucket/prefix")


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The absolute path of a local URI; ValueError where it is empty and where its links form a circle."""
    _require_named(uri)
    path = Path(uri.removeprefix("file://")).expanduser()
    try:
        return path.resolve()
    except RuntimeError:  # Python 3.11 and 3.12 raise no OSError here
        raise ValueError(f"URI {uri!r}: its links lead in a circle; give the file itself") from None


def create_exclusively(uri: str, data: bytes) -> bool:
    """Write a small object that must not exist yet; False if it does.

    Of any number of processes that create the same URI at most one gets True. Locally by linking a finished file, on S3
    by If-None-Match. A kill in the middle leaves the whole object or none.
    """
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            fs.makedirs(os.path.dirname(path), exist_ok=True)
            _link_exclusively(data, path)
        else:
            fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if s3_error(error)[0] != "PreconditionFailed":  # Ceph's answer lacks the detail that s3fs looks for
            raise
        return False
    return True


def _link_exclusively(data: bytes, path: str) -> None:
    """Write a temporary file, then link it under its name; FileExistsError if the name is taken.

    A kill in the middle leaves at most the temporary file, which no reader looks at.
    """
    temporary = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_storage(uri: str) -> None:
    """Check before anything expensive starts that a storage URI is writable and honours exclusive creates.

    Raises Unavailable for a store that does not answer, and ValueError where it refuses: forbidden, no such bucket, or
    a store in which the second of two creates succeeds. Writes one small object and removes it.
    """
    fs, path = filesystem(uri)
    probe = join(uri, f".probe-{uuid.uuid4().hex}")
    try:
        if is_local(uri):
            fs.makedirs(path, exist_ok=True)
        first, second = create_exclusively(probe, b"1"), create_exclusively(probe, b"2")
        fs.rm_file(filesystem(probe)[1])
    except Exception as error:  # each kind of store raises other exception types
        kind = Unavailable if is_transient(error) else ValueError
        raise kind(
            f"storage {uri!r}: cannot be written ({describe_error(error)}); check the address, bucket and credentials"
        ) from None
    if not first or second:
        raise ValueError(
            f"storage {uri!r}: the store ignores exclusive creates, so two runs could overwrite each other; use another"
        )


def put_file(source: Path, uri: str) -> None:
    """Copy a local file to a URI; readers see what was there before or the whole file."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.put_file(str(source), path)
        return
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(Path(path)) as file:
        fs.put_file(str(source), file.name)
        os.fsync(file.fileno())  # whole also after a power cut, before anything says that it is there


def size_of(uri: str) -> int | None:
    """The size of a file in bytes; None where there is none."""
    fs, path = filesystem(uri)
    try:
        return int(fs.info(path)["size"])
    except FileNotFoundError:
        return None


def put_text(uri: str, text: str) -> None:
    """Write a small file in UTF-8, or replace it; the same as `put_bytes`."""
    put_bytes(uri, text.encode())


def put_bytes(uri: str, content: bytes) -> None:
    """Write a whole file, or replace it; readers see the old content or the new, never half. The last writer wins."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, content)
        return
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(Path(path)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def get_bytes(uri: str) -> bytes:
    """The content of a file; ValueError where a local folder or pipe has its name."""
    fs, path = filesystem(uri)
    if is_local(uri):
        return read_own_file(Path(path))
    content: bytes = fs.cat_file(path, max_concurrency=1)  # with more, a request for the file's size comes before it
    return content


def read_json(uri: str, shape: Any = dict[str, Any]) -> Any:
    """The value of a JSON file; ValueError, naming the URI, where it is none of this shape (`json_files.py`)."""
    return parse_json(get_bytes(uri), uri, shape)


def remove_file(uri: str) -> None:
    """Remove one file, if it exists."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm_file(path)


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def list_names(uri: str) -> list[str]:
    """The names of the entries directly below a URI, sorted; empty if there is no such folder."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def remove_unfinished(uri: str) -> None:
    """Remove what killed processes have left half written directly in a local folder; on an object store nothing is.

    Call it once nothing that counts is written there any more: the file of a running writer would be removed too.
    """
    if is_local(uri):
        for left_over in local_path(uri).glob(f".*{UNFINISHED}"):
            if re.fullmatch(rf"\.[0-9a-f]{{32}}{re.escape(UNFINISHED)}", left_over.name):  # not another program's
                left_over.unlink(missing_ok=True)


def file_sizes(uri: str) -> dict[str, int]:
    """Path below a URI -> size in bytes of every file there, at any depth; empty where nothing is."""
    fs, path = filesystem(uri)
    top = path.rstrip("/") + "/"
    found = fs.find(path, detail=True)
    return {name.removeprefix(top): int(info["size"]) for name, info in sorted(found.items()) if name.startswith(top)}


def abort_stale_uploads(uri: str) -> None:
    """Abort the multipart uploads below a URI that were never completed: no listing shows them, and S3 keeps them.

    Call it only while no process uploads below the URI: a running upload would be aborted too. Raises OSError for
    transient errors; a store that refuses the request for good is left as it is, and stderr says so.
    """
    if not uri.startswith("s3://"):
        return
    fs, path = filesystem(uri)
    bucket, prefix = path.split("/", 1)
    try:
        for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", []):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except OSError as error:
        if is_transient(error):
            raise
        print_status(f"{uri}: parts of interrupted uploads may be left there ({describe_error(error)})")


def modified_at(uri: str) -> datetime:
    """The time at which a file was last written, by the store's clock."""
    fs, path = filesystem(uri)
    return cast(datetime, fs.modified(path))
