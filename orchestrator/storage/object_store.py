"""Files anywhere: the only user of fsspec and s3fs. Folders are published parts first, then their marker, exclusively.

Credentials and endpoints come from the process environment (AWS_*), never as arguments.
"""

import io
import os
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from orchestrator.storage.retry import describe_error, may_pass, refusal, retry_while_unavailable, say
from workloads.runtime.opener import MARKER

READING_S = 60.0  # how long data are waited for; what a run writes has the user's own --patience
# Newer AWS SDKs send checksums that older S3 servers answer with 411; every process that talks S3 needs these.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


def filesystem(uri: str, *, patience_s: float = 0.0) -> tuple[Any, str]:
    """The file system of a URI and the path within it; a plain path is a local one. ValueError for unknown schemes.

    With `patience_s` it repeats by itself for about so long, for those who know nothing of `retry_while_unavailable`.
    """
    options: dict[str, Any] = {}
    if uri.startswith("s3://"):
        retries = {"mode": "standard", "total_max_attempts": _attempts(patience_s)}
        options = {"use_listings_cache": False, "config_kwargs": {"retries": retries}}
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri), **options)
    except (ValueError, ImportError) as error:
        raise ValueError(f"URI {uri!r}: {error}; use a local path or an installed scheme such as s3://") from None
    return fs, path


def _attempts(patience_s: float) -> int:
    """How often botocore must try to fill that time; between two tries it sleeps random() * min(2**n, 20) seconds.

    One by default: its tries inside s3fs's own would hold each call to a server that hangs for seven minutes.
    """
    attempts, waited = 1, 0.0
    while waited < patience_s:
        waited += min(2 ** (attempts - 1), 20) / 2
        attempts += 1
    return attempts


def join(uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *parts])


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).expanduser().resolve()


class FsspecFiles:
    """`workloads.files.Opener` over fsspec, so that clips, manifests and first weights may lie anywhere."""

    def open(self, uri: str) -> BinaryIO:
        fs, path = filesystem(uri)
        if is_local(uri):
            return cast(BinaryIO, fs.open(path, "rb"))
        return io.BytesIO(retry_while_unavailable(lambda: fs.cat_file(path), what=uri, patience_s=READING_S))

    def identity(self, uri: str) -> str:
        fs, path = filesystem(uri)
        info = retry_while_unavailable(lambda: fs.info(path), what=uri, patience_s=READING_S)
        stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified")
        return f"{info['size']}:{stamp}"

    def join(self, root: str, path: str) -> str:
        absolute = "://" in path or path.startswith("/")
        return path if absolute or not root else join(root, path)


def create_exclusively(uri: str, data: bytes) -> bool:
    """Write a small object that must not exist yet; False if it does. Locally by O_EXCL, on S3 by If-None-Match."""
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
        if refusal(error)[0] != "PreconditionFailed":  # as Ceph says it, without the detail that s3fs looks for
            raise
        return False
    return True


def _link_exclusively(data: bytes, path: str) -> None:
    """All of it or nothing, also if this process is killed: written aside, then linked under its name."""
    aside = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def probe(uri: str) -> None:
    """Check before anything expensive that a storage URI can be written and holds exclusive creates.

    Raises ValueError where it cannot: unreachable, forbidden, no such bucket, or a store that lets the
    second create win.
    """
    fs, path = filesystem(uri)
    mark = join(uri, f".probe-{uuid.uuid4().hex}")
    try:
        if is_local(uri):
            fs.makedirs(path, exist_ok=True)
        first, second = create_exclusively(mark, b"1"), create_exclusively(mark, b"2")
        fs.rm_file(filesystem(mark)[1])
    except Exception as error:  # every store words its refusals in exceptions of its own
        raise ValueError(
            f"storage {uri!r}: cannot be written ({describe_error(error)}); check the address, bucket and credentials"
        ) from None
    if not first or second:
        raise ValueError(
            f"storage {uri!r}: the store ignores exclusive creates, so two runs could overwrite each other; use another"
        )


def publish(folder: Path, uri: str, *, before_commit: Callable[[], None] = lambda: None) -> str:
    """Copy a finished checkpoint folder to a URI, its marker last; returns the URI.

    `before_commit` is called between the parts and the marker; what it raises leaves the folder without one. A folder
    that is published already with the same content stays; with other content it is replaced.
    """
    fs, path = filesystem(uri)
    marker = (folder / MARKER).read_bytes()
    if fs.exists(join(path, MARKER)):
        if fs.cat_file(join(path, MARKER)) == marker:
            return uri
        remove(uri)
    if is_local(uri):  # s3fs would make the bucket
        fs.makedirs(path, exist_ok=True)
    for part in sorted(folder.iterdir()):
        if part.name != MARKER:
            fs.put_file(str(part), join(path, part.name))
    before_commit()
    create_exclusively(join(uri, MARKER), marker)
    return uri


def put_text(uri: str, text: str) -> None:
    """Write a small file, in place of one that is there; readers see the old one or the new one, never half of it."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, text.encode())
        return
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    aside = Path(path).with_name(f".{uuid.uuid4().hex}")
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def get_text(uri: str) -> str:
    fs, path = filesystem(uri)
    return fs.cat_file(path).decode()


def delete(uri: str) -> None:
    """Remove one file, if it is there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm_file(path)


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def fetch(uri: str, folder: Path) -> Path:
    """A published folder as a local one; a local URI is used where it lies. ValueError if it is not there."""
    fs, path = filesystem(uri)
    if not fs.exists(join(path, MARKER)):
        raise ValueError(f"checkpoint {uri!r}: no {MARKER} there, so it does not exist or was never finished")
    if is_local(uri):
        return local_path(uri)
    folder.mkdir(parents=True, exist_ok=True)
    for part in fs.ls(path, detail=False):
        fs.get_file(part, str(folder / part.rsplit("/", 1)[-1]))
    return folder


def names(uri: str) -> list[str]:
    """The names of what lies directly below a URI, sorted; nothing where there is no such folder."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def committed(uri: str) -> list[str]:
    """The names of the finished folders directly below a URI, sorted."""
    return [name for name in names(uri) if exists(join(uri, name, MARKER))]


def remove(uri: str) -> None:
    """Remove a folder; its marker goes first, so that a half-removed one cannot be taken for whole."""
    fs, path = filesystem(uri)
    if fs.exists(join(path, MARKER)):
        fs.rm_file(join(path, MARKER))
    if fs.exists(path):
        fs.rm(path, recursive=True)


def forget_uploads(uri: str) -> None:
    """Give up what was begun to upload below a URI and never ended: S3 shows it in no listing and keeps it for ever.

    To be called where nobody uploads. A store that does not let us is left as it is, with a word about it.
    """
    if not uri.startswith("s3://"):
        return
    fs, path = filesystem(uri)
    bucket, prefix = path.split("/", 1)
    try:
        for begun in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", []):
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])
    except OSError as error:
        if may_pass(error):
            raise
        say(f"{uri}: parts of interrupted uploads may be left there ({describe_error(error)})")


def changed(uri: str) -> datetime:
    """When a file was last written, by the store's clock."""
    fs, path = filesystem(uri)
    return cast(datetime, fs.modified(path))
