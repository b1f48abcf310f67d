"""What lies below a URI, with times by the store's own clock. Does not depend on what the files are.

Clocks of machines differ, so the age of a file is the difference of two times of one clock: on S3 the server's, which
each of its answers carries, locally this machine's.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from orchestrator.storage.object_store import filesystem, is_local

PAGE = 1000  # entries that an answer of S3 holds: the most


@dataclass
class Listing:
    """Files and folders below a URI at one moment. Times are in seconds since the epoch, by the store's clock."""

    now: float
    written: dict[str, float] = field(default_factory=dict)  # of each file, by its path below the URI
    folders: set[str] = field(default_factory=set)  # names; empty in a listing of all depths

    def age(self, file: str) -> float:
        """Seconds since a file was written."""
        return max(self.now - self.written[file], 0.0)


def list_folder(uri: str, *, all_depths: bool = False) -> Listing:
    """What is directly below a URI, or with `all_depths` every file below it; empty where there is no such folder.

    On S3 one request for each 1,000 entries, whose times are whole seconds. FileNotFoundError where there is no bucket.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        return _local(Path(path), all_depths=all_depths)
    bucket, _, prefix = path.rstrip("/").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE} | (
        {} if all_depths else {"Delimiter": "/"}
    )
    found = Listing(0.0)
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        found.now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        files = {item["Key"].removeprefix(prefix): item["LastModified"] for item in page.get("Contents", [])}
        found.written |= {name: at.timestamp() for name, at in files.items() if name}
        found.folders |= {item["Prefix"].removeprefix(prefix)[:-1] for item in page.get("CommonPrefixes", [])}
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    return found


def _local(folder: Path, *, all_depths: bool) -> Listing:
    """The same of a local folder; what is removed meanwhile is left out."""
    found = Listing(time.time())
    for place, folders, files in os.walk(folder):
        for name in files:
            file = Path(place, name)
            with suppress(FileNotFoundError):
                found.written[str(file.relative_to(folder))] = file.stat().st_mtime
        if not all_depths:
            found.folders = set(folders)
            break
    return found
