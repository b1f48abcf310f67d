"""The local Ray of a run: its token and scratch are the user's own."""

import os
import platform
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import stack
from orchestrator.storage.retry import Unavailable
from orchestrator.training import ray_cluster


@pytest.fixture(autouse=True)
def _without_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ray_cluster.TOKEN_VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test, whatever it sets
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # other tests of this process may have imported it
    monkeypatch.setattr(ray_cluster, "PRIVATE", tmp_path / "home" / "ray")


# ray/_private/node.py of 2.60
STARTS_LATE = "The current node timed out during startup. This could happen because some of the raylet failed"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_can_read_the_token_of_a_local_ray(tmp_path: Path) -> None:
    assert ray_cluster.prepare_environment("") == ""
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert len(token.read_text()) == 64
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_the_environment_is_prepared_before_ray_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())
    with pytest.raises(RuntimeError, match="imported before"):
        ray_cluster.prepare_environment("")
    assert ray_cluster.prepare_environment("10.0.0.7:6379") == "10.0.0.7:6379"


def test_runs_that_start_at_once_share_one_whole_token(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: stack.ray_token(tmp_path).read_text(), range(64)))
    assert len(set(files)) == 1
    assert len(files[0]) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["ray.token"]


def test_a_token_that_the_user_has_set_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_cluster.prepare_environment("")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("said", "kind"), [(STARTS_LATE, Unavailable), ("no such option", TypeError)])
def test_a_machine_too_busy_to_start_ray_may_be_tried_again(said: str, kind: type[Exception]) -> None:
    class Ray:
        """Only its refusal is of interest: a machine that busy cannot be had."""

        @staticmethod
        def init(**_: object) -> None:
            raise Exception(said) if kind is Unavailable else TypeError(said)

    with pytest.raises(kind, match=said):
        ray_cluster.connect(Ray, "", at_least=1)


# Prints a variable of a worker's environment, and the pages that a tensor of 64 MB newly takes there after others.
PROGRAM = """
from orchestrator.training import ray_cluster

ray_cluster.prepare_environment("")
import os, ray

def allocate():
    import resource, torch

    torch.set_num_threads(1)  # of another thread no faults are counted
    faults = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(32):
        torch.ones(2**24)
    before = faults()
    torch.ones(2**24)
    return os.environ.get("MALLOC_ARENA_MAX"), faults() - before

ray_cluster.connect(ray, "", at_least=1)
print(*ray.get(ray.remote(allocate).remote()))
"""
PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
@pytest.mark.parametrize(
    ("own", "expected", "kept"), [({}, "1", True), ({"MALLOC_ARENA_MAX": "4"}, "4", False)], ids=["ours", "the user's"]
)
def test_workers_keep_freed_memory_unless_the_user_has_set_how(own: dict[str, str], expected: str, kept: bool) -> None:
    taken = ("MALLOC_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env | own, capture_output=True, text=True, check=True, timeout=300
    )
    variable, new_pages = done.stdout.split()[-2:]
    assert (variable, int(new_pages) < PAGES // 100) == (expected, kept)
