"""Free memory is that of the machine, or of a container whose limit leaves less; cached files do not count."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from workloads.runtime.free_memory import free_memory

AVAILABLE = 81_920


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=AVAILABLE))


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("max", 50_000, AVAILABLE), ("1000000", 50_000, 81_920), ("60000", 50_000, 13_000), ("40000", 50_000, 0)],
)
@pytest.mark.parametrize(
    ("folder", "names"), [("", ("max", "current")), ("memory", ("limit_in_bytes", "usage_in_bytes"))]
)
def test_the_smaller_of_both(
    tmp_path: Path, folder: str, names: tuple[str, str], limit: str, used: int, free: int
) -> None:
    assert free_memory(group=tmp_path / "none") == AVAILABLE, "no control groups, as on macOS"
    group = tmp_path / "group" / folder
    group.mkdir(parents=True)
    for name, text in zip(names, (limit, str(used)), strict=True):
        (group / f"memory.{name}").write_text(text + "\n")
    (group / "memory.stat").write_text("anon 47000\ninactive_file 1000\nactive_file 2000\n")
    assert free_memory(group=tmp_path / "group") == free
