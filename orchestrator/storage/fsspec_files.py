"""Data at any URI for `workloads`, which knows no object stores: clips, manifests, stores, initial weights."""

import errno
import io
from pathlib import Path
from typing import BinaryIO

from orchestrator.storage import object_store, published_folders
from orchestrator.storage.object_store import READ_RETRY_S
from orchestrator.storage.retry import retry_while_unavailable
from workloads.runtime.opener import local_files_below, regular_file


class FsspecFiles:
    """The `Opener` of `workloads.runtime.opener` over fsspec, for clips, manifests and initial weights at any URI."""

    def open(self, uri: str) -> BinaryIO:
        fs, path = object_store.filesystem(uri)
        if object_store.is_local(uri):
            return regular_file(Path(path)).open("rb")
        return io.BytesIO(retry_while_unavailable(lambda: fs.cat_file(path), what=uri, patience_s=READ_RETRY_S))

    def identity(self, uri: str) -> str:
        fs, path = object_store.filesystem(uri)
        if object_store.is_local(uri):
            regular_file(Path(path))
        info = retry_while_unavailable(lambda: fs.info(path), what=uri, patience_s=READ_RETRY_S)
        stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified")
        return f"{info['size']}:{stamp}"

    def files_below(self, uri: str) -> list[str]:
        fs, path = object_store.filesystem(uri)
        if object_store.is_local(uri):
            return local_files_below(Path(path))
        found = retry_while_unavailable(lambda: fs.find(path), what=uri, patience_s=READ_RETRY_S)
        top = path.rstrip("/") + "/"
        names = sorted(name.removeprefix(top) for name in found if name.startswith(top) and not name.endswith("/"))
        if not names:
            raise FileNotFoundError(errno.ENOENT, "nothing is below it", uri)
        return names

    def published_folder(self, uri: str) -> str:
        return retry_while_unavailable(
            lambda: published_folders.published_folder(uri), what=uri, patience_s=READ_RETRY_S
        )

    def join(self, root: str, path: str) -> str:
        absolute = "://" in path or path.startswith("/")
        return path if absolute or not root else object_store.join(root, path)
