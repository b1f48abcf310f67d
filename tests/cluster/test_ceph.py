"""Ceph RGW's files that were removed or damaged, and a monitor that ends at once.

Its daemons run in `tests/integration/test_rgw.py`.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster import ceph
from cluster.process_registry import ProcessRegistry

IDENTITY = json.dumps(asdict(ceph.Identity("f", "o", (1, 2))))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("user.json", None, "is missing"),
        ("user.json", "{}", "keys: field required"),
        ("user.json", '{"keys": []}', "keys: list should have at least 1 item"),
        ("user.json", '{"keys": [{"access_key": "a"}]}', "keys.0.secret_key: field required"),
        ("identity.json", None, "is missing"),
        ("identity.json", "{", "is not JSON"),
    ],
)
def test_a_file_that_is_lost_is_named_with_the_fix(tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    home = tmp_path / "rgw"
    home.mkdir()
    keys = {"user": "antiphon", "access_key": "a", "secret_key": "s"}
    files = {"made": "", "identity.json": IDENTITY, "user.json": json.dumps({"keys": [keys]})} | {name: content}
    for file, text in files.items():
        if text is not None:
            (home / file).write_text(text)
    registry = ProcessRegistry(tmp_path)
    fix = f"`antiphon cluster down`, then remove {home} with its data"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{home / name}: {reason}')}.*{re.escape(fix)}$"):
        ceph.start(registry)
    assert registry.services == {}


def test_a_monitor_that_ends_is_reported_with_its_log_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        ceph.check_installed()
    except ValueError as missing:
        pytest.skip(str(missing))
    too_strict = ceph.CONF.replace("mon_data_avail_crit = 0", "mon_data_avail_crit = 100")
    assert too_strict != ceph.CONF
    monkeypatch.setattr(ceph, "CONF", too_strict)
    registry = ProcessRegistry(tmp_path)
    with pytest.raises(RuntimeError, match=r"^s3-mon \(pid \d+\) ended while starting; the end of .*s3-mon\.log:"):
        ceph.start(registry)
    assert list(registry.services) == ["s3-mon"]  # the only one that was started
    registry.stop("s3-mon")
