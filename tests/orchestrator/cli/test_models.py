"""`antiphon models` as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.models.catalog import CATALOG

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


def antiphon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ANTIPHON, "models", *arguments], capture_output=True, text=True)


def test_every_published_network_is_listed_once_with_its_family() -> None:
    assert {"mn01", "mn04", "mn10", "mn40", "dymn04", "dymn10", "dymn20", "ced_tiny", "ast_base"} < set(CATALOG)
    assert {model.arch.family for model in CATALOG.values()} == {
        *("mn", "dymn", "frame_mn", "efficientnet", "ast", "passt", "eat", "ced", "ondevice", "wav2vec2")
    }
    assert len({repr(model) for model in CATALOG.values()}) == len(CATALOG)


def test_the_list_contains_sizes_and_latency() -> None:
    done = antiphon("--only", "mn0", "--latency", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    rows = {row["name"]: row for row in printed["models"]}
    assert (printed["classes"], printed["clip_seconds"]) == (527, 10.0)
    assert list(rows) == ["mn01", "mn02", "mn04", "mn05", "mn06", "mn08"]
    assert rows["mn04"]["params"] / 1e6 == pytest.approx(0.984, abs=0.0005)
    assert rows["mn04"]["macs"] / 1e9 == pytest.approx(0.111, rel=0.01)
    assert rows["mn04"]["family"] == "mn"
    assert rows["mn04"]["front_end"] == "efficientat128"
    assert all(row["latency_ms"] > 0 for row in rows.values())


def test_an_unknown_prefix_lists_the_known_names() -> None:
    done = antiphon("--only", "resnet")
    assert done.returncode == 2
    assert "ced_tiny" in done.stderr
