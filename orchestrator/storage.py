"""Files anywhere: the only user of fsspec and s3fs. Folders are published parts first, then their marker, exclusively.

Credentials and endpoints come from the process environment (AWS_*), never as arguments.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from workloads.files import MARKER

# Newer AWS SDKs send checksums that older S3 servers answer with 411; every process that talks S3 needs these.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


def filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path within it; a plain path is a local one. ValueError for unknown schemes."""
    try:
        options = {"use_listings_cache": False} if uri.startswith("s3://") else {}
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri), **options)
    except (ValueError, ImportError) as error:
        raise ValueError(f"URI {uri!r}: {error}; use a local path or an installed scheme such as s3://") from None
    return fs, path


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
        with _as_os_error(uri):
            return cast(BinaryIO, fs.open(path, "rb"))

    def identity(self, uri: str) -> str:
        fs, path = filesystem(uri)
        with _as_os_error(uri):
            info = fs.info(path)
        stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified")
        return f"{info['size']}:{stamp}"

    def join(self, root: str, path: str) -> str:
        absolute = "://" in path or path.startswith("/")
        return path if absolute or not root else join(root, path)


@contextmanager
def _as_os_error(uri: str) -> Iterator[None]:
    """Whatever a store raises (no credentials, no route) as an OSError of one line; a missing file stays one."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{uri}: {' '.join(str(error).split())}") from error


def create_exclusively(uri: str, data: bytes) -> bool:
    """Write a small object that must not exist yet; False if it does. Locally by O_EXCL, on S3 by If-None-Match."""
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            with open(path, "xb") as file:
                file.write(data)
        else:
            fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"storage {uri!r}: cannot be written ({reason}); check the address, bucket and credentials"
        ) from None
    if not first or second:
        raise ValueError(
            f"storage {uri!r}: the store ignores exclusive creates, so two runs could overwrite each other; use another"
        )


def publish(folder: Path, uri: str) -> str:
    """Copy a finished checkpoint folder to a URI, its marker last; returns the URI.

    A published folder is never rewritten: when its marker exists already, a repeated step ends here.
    """
    fs, path = filesystem(uri)
    if fs.exists(join(path, MARKER)):
        return uri
    fs.makedirs(path, exist_ok=True)
    for part in sorted(folder.iterdir()):
        if part.name != MARKER:
            fs.put_file(str(part), join(path, part.name))
    create_exclusively(join(uri, MARKER), (folder / MARKER).read_bytes())
    return uri


def put_text(uri: str, text: str) -> None:
    fs, path = filesystem(uri)
    if is_local(uri):
        fs.makedirs(os.path.dirname(path), exist_ok=True)
    fs.pipe_file(path, text.encode())


def get_text(uri: str) -> str:
    fs, path = filesystem(uri)
    return fs.cat_file(path).decode()


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


def committed(uri: str) -> list[str]:
    """The names of the finished folders directly below a URI, sorted."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return []
    names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    return [name for name in names if fs.exists(join(path, name, MARKER))]


def keep_last(uri: str, count: int) -> None:
    """Remove all but the newest finished folders; the marker goes first, so that no half-removed one can be found."""
    fs, path = filesystem(uri)
    for name in committed(uri)[:-count]:
        fs.rm_file(join(path, name, MARKER))
        fs.rm(join(path, name), recursive=True)
