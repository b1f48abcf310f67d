"""`antiphon models`, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.models.catalog import CATALOG

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def antiphon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, "models", *arguments], capture_output=True, text=True)


def test_every_published_name_is_there_once_under_its_own_family() -> None:
    assert {"mn01", "mn04", "mn10", "mn40", "dymn04", "dymn10", "dymn20", "ced_tiny", "ast_base"} < set(CATALOG)
    assert {model.arch.family for model in CATALOG.values()} == {"mn", "dymn", "efficientnet", "ast", "ced", "ondevice"}
    assert len({repr(model) for model in CATALOG.values()}) == len(CATALOG)


def test_the_list_tells_sizes_and_latency() -> None:
    done = antiphon("--only", "mn0", "--latency", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = {row["name"]: row for row in told["models"]}
    assert (told["classes"], told["clip_seconds"]) == (527, 10.0)
    assert list(rows) == ["mn01", "mn02", "mn04", "mn05", "mn06", "mn08"]
    assert rows["mn04"]["params"] / 1e6 == pytest.approx(0.984, abs=0.0005)
    assert rows["mn04"]["macs"] / 1e9 == pytest.approx(0.111, rel=0.01)
    assert rows["mn04"]["family"] == "mn"
    assert rows["mn04"]["front_end"] == "efficientat128"
    assert all(row["latency_ms"] > 0 for row in rows.values())


def test_a_name_that_nobody_published_lists_the_known() -> None:
    done = antiphon("--only", "resnet")
    assert done.returncode == 2
    assert "ced_tiny" in done.stderr
