"""Faults while a store is filled: the same command goes on, and the store has the bytes of an undisturbed one."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.training import ray_pool
from tests import killed
from tests.integration.test_s3_faults import quota
from tests.killed import Kill
from tests.nodes import RayNodes, ray_nodes
from tests.processes import title
from tests.s3_user import S3User
from tests.servers import start_server
from tests.teachers import CLIPS
from tests.tiny_search import ANTIPHON, sets

pytestmark = pytest.mark.faults

SETTINGS = ("teach.views=400", "teach.clips_per_shard=1")  # a second or so a shard
WAIT_S = 300.0


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the store that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert killed.antiphon(command(folder, out / "store", "--local"), out / "out") == 0, errors(out)
    return content(out / "store")


def command(folder: Path, out: Path | str, *options: str) -> list[str]:
    return ["teach", f"{folder}/mine.toml", "--out", str(out), "--json", *sets(*SETTINGS), *options]


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def errors(folder: Path) -> str:
    return (folder / "out.err").read_text()[-3000:]


def num_shards(store: Path) -> int:
    return len(list(store.glob("shards/outputs-*")))


def until(condition: Callable[[], bool], ended: Callable[[], bool]) -> None:
    """Return once the condition holds; fail where the command ends before."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert not ended(), "the command has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_command_is_killed_before_every_file_gets_its_name(folder, undisturbed, tmp_path, fault_table):
    """Each attempt writes one file whole and is killed with the next one half written."""
    store, out, kills = tmp_path / "store", tmp_path / "out", 0
    while (code := killed.antiphon(command(folder, store, "--local"), out, Kill("replace", 2))) == -signal.SIGKILL:
        kills += 1
        assert kills <= len(CLIPS)
    assert (code, kills) == (0, len(CLIPS)), errors(tmp_path)
    assert killed.outcome(out)["shards_written"] == 1
    assert content(store) == undisturbed
    fault_table(
        fault=f"teach: process killed {kills} times, with a file half written",
        seen="nothing; the same command goes on",
        equal=True,
    )


def test_two_commands_at_once(folder, teach, tmp_path, fault_table):
    few, store, outs = (
        ("teach.views=20", "teach.clips_per_shard=1"),
        tmp_path / "store",
        [tmp_path / "1", tmp_path / "2"],
    )
    teach(tmp_path / "alone", *few)
    both = [killed.start(command(folder, store, "--local", *sets(*few)), out) for out in outs]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0], [Path(f"{out}.err").read_text()[-3000:] for out in outs]
    assert {killed.outcome(out)["rows"] for out in outs} == {20 * len(CLIPS)}
    assert content(store) == content(tmp_path / "alone")
    fault_table(fault="teach: two commands with one `--out` at once", seen="nothing; both end with 0", equal=True)


@pytest.mark.parametrize("which", ["the driver", "the driver and all of Ray"])
def test_a_driver_on_ray_is_killed(folder, undisturbed, tmp_path, fault_table, which):
    store = tmp_path / "store"
    words = [ANTIPHON, *command(folder, store, "--workers", "2")]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: num_shards(store) >= 2, lambda: process.poll() is not None)
        driver = psutil.Process(process.pid)
        for child in driver.children(recursive=True) if "Ray" in which else []:
            child.kill()
        driver.kill()
    before, began = num_shards(store), time.monotonic()
    assert before < len(CLIPS)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: num_shards(store) > before, lambda: process.poll() is not None)
        seconds = time.monotonic() - began
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said[-3000:]
    assert content(store) == undisturbed
    seen = "nothing; the same command goes on"
    fault_table(fault=f"teach on Ray: {which} killed", seen=seen, seconds=seconds, equal=True)


def test_a_worker_that_hangs_is_killed_and_its_shard_given_to_another(
    folder, undisturbed, teach, tmp_path, monkeypatch, capfd, fault_table
):
    """Stopped by SIGSTOP, it lives and answers nothing."""
    monkeypatch.setattr(ray_pool, "LEAST_S", 5.0)
    monkeypatch.setattr(ray_pool, "TIMES_SLOWEST", 3.0)
    stopped: list[psutil.Process] = []

    def stop_a_worker(done: int, total: int) -> None:
        if done == 2 and not stopped:
            stopped.append(next(process for process in psutil.Process().children(recursive=True) if fills(process)))
            stopped[0].suspend()

    options = {"local": False, "workers": 2, "patience_s": 0.0}  # it would be waited for beside the limit
    done = teach(tmp_path / "store", *SETTINGS, on_shard=stop_a_worker, **options)
    assert (done["status"], done["shards_written"]) == ("done", len(CLIPS))
    assert content(tmp_path / "store") == undisturbed
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE
    said = re.search(r"shard \d+: its worker has not ended within \d+ s; another one gets it", capfd.readouterr().err)
    assert said
    seen = "shard N: its worker has not ended within M s; another one gets it"
    fault_table(fault="teach on Ray: a worker hangs (SIGSTOP)", seen=seen, repeated=1, equal=True)


def fills(process: psutil.Process) -> bool:
    return "ShardFiller" in title(process)


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes(1, 1) as cluster:
        yield cluster


def test_a_node_is_killed(folder, nodes, undisturbed, tmp_path, fault_table):
    """All processes of one of two nodes, with the worker on it; its shard is given to the other one."""
    store = tmp_path / "store"
    words = [ANTIPHON, *command(folder, store, "--workers", "2", "--address", nodes.address)]
    with subprocess.Popen(
        nodes.command(nodes.head, *words), env=nodes.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: num_shards(store) >= 2, lambda: process.poll() is not None)
        nodes.nodes[1].kill()
        before, began = num_shards(store), time.monotonic()
        until(lambda: num_shards(store) > before, lambda: process.poll() is not None)
        seconds = time.monotonic() - began
        _, said = process.communicate(timeout=WAIT_S)
    assert before < len(CLIPS)
    assert process.returncode == 0, said[-3000:]
    assert content(store) == undisturbed
    seen = "nothing; the shard is given to another worker"
    fault_table(fault="teach on Ray: one of two nodes killed", seen=seen, seconds=seconds, equal=True)


def on_s3(user: S3User) -> dict[str, bytes]:
    """The files of the store in the user's bucket."""
    client = user.server.client()
    return {
        key.removeprefix("store/"): client.get_object(Bucket=user.bucket, Key=key)["Body"].read()
        for key in user.objects()
    }


def start(user: S3User, folder: Path, *options: str) -> Any:
    words = command(folder, f"s3://{user.bucket}/store", "--local", *options)
    return killed.start(words, user.home / "out", env=user.env)


def shards_on_s3(user: S3User) -> int:
    return len([key for key in user.objects() if key.startswith("store/shards/")])


def test_s3_is_killed_and_restarted(folder, user, kill_server, undisturbed, fault_table):
    process = start(user, folder)
    until(lambda: shards_on_s3(user) >= 2, lambda: not process.is_alive())
    kill_server()
    until(lambda: "trying again" in user.stderr, lambda: not process.is_alive())
    start_server(user.server)
    process.join()
    assert process.exitcode == 0, user.stderr
    assert on_s3(user) == undisturbed
    seen = "waits: s3://...: Could not connect to the endpoint URL ...; trying again"
    fault_table(fault="teach: S3: all daemons killed (SIGKILL), started again", seen=seen, equal=True)


def test_s3_is_unavailable_for_too_long(folder, user, kill_server, undisturbed, fault_table):
    process = start(user, folder, "--patience", "2")
    until(lambda: shards_on_s3(user) >= 2, lambda: not process.is_alive())
    kill_server()
    process.join()
    assert process.exitcode == 75, user.stderr
    assert "Could not connect" in user.last_line
    start_server(user.server)
    process = start(user, folder)
    process.join()
    assert process.exitcode == 0, user.stderr
    assert on_s3(user) == undisturbed
    fault_table(
        fault="teach: S3: unavailable for longer than `--patience`; then the same command",
        seen="exit 75: unavailable: s3://...: Could not connect to the endpoint URL ...",
        equal=True,
    )


def test_no_space_on_s3(folder, user, undisturbed, fault_table):
    quota(user, "set", "--max-size", str(sum(map(len, undisturbed.values())) // 2))
    quota(user, "enable")
    process = start(user, folder)
    process.join()
    assert process.exitcode == 1
    assert "QuotaExceeded: no space left, the quota is used up" in user.last_line
    assert "Traceback" not in user.stderr
    assert 0 < shards_on_s3(user) < len(CLIPS)
    quota(user, "disable")
    process = start(user, folder)
    process.join()
    assert process.exitcode == 0, user.stderr
    assert on_s3(user) == undisturbed
    fault_table(
        fault="teach: S3: no space (quota); then room and the same command",
        seen="exit 1: failed: s3://...: QuotaExceeded: no space left, the quota is used up",
        equal=True,
    )


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: dict[str, bytes]) -> Iterator[Path]:
    """A separate file system with room for half of the store."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(map(len, undisturbed.values())) // 2
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(folder, small_disk, undisturbed, tmp_path, fault_table):
    words, out = command(folder, small_disk / "store", "--local"), tmp_path / "out"
    assert killed.antiphon(words, out) == 1
    last = errors(tmp_path).splitlines()[-1]
    assert "No space left" in last
    assert str(small_disk) in last
    assert 0 < num_shards(small_disk / "store") < len(CLIPS)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert killed.antiphon(words, out) == 0, errors(tmp_path)
    assert content(small_disk / "store") == undisturbed
    seen = "exit 1: failed: [Errno 28] No space left on device: PATH"
    fault_table(fault="teach: a full disk; then room and the same command", seen=seen, equal=True)


def test_a_damaged_shard_is_named_and_made_again(folder, undisturbed, tmp_path, antiphon, fault_table):
    store, out = tmp_path / "store", tmp_path / "out"
    assert killed.antiphon(command(folder, store, "--local"), out) == 0, errors(tmp_path)
    damaged = sorted(store.glob("shards/outputs-*"))[4]
    with damaged.open("r+b") as file:
        file.seek(os.path.getsize(damaged) // 2)
        file.write(b"damaged")
    verified = antiphon("store", "verify", store)
    assert (verified.code, damaged.name in verified.out) == (1, True)
    assert "remove the damaged files" in verified.err
    damaged.unlink()
    assert killed.antiphon(command(folder, store, "--local"), out) == 0, errors(tmp_path)
    assert killed.outcome(out)["shards_written"] == 1
    assert content(store) == undisturbed
    seen = "`antiphon store verify` names it; once removed, the same command makes it again"
    fault_table(fault="a shard of a finished store damaged", seen=seen, repeated=1, equal=True)
