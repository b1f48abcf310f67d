"""Temporary folders: gone at the end, those of killed processes collected by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.runtime.scratch import private_folder, scratch_folder

OPEN = """
import sys
from workloads.runtime.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "checkpoint").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""

DIE_IN_MKDIR = """
import os, signal
make = os.mkdir
def make_and_die(path, *arguments, **options):
    make(path, *arguments, **options)
    if os.path.basename(os.path.dirname(path)) == "scratch":
        os.kill(os.getpid(), signal.SIGKILL)
os.mkdir = make_and_die
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # where it keeps what TMPDIR was before
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("antiphon-*/scratch/*") if not path.name.startswith("."))


def test_folders_of_one_process_are_its_own_and_gone_at_the_end(temporary):
    with scratch_folder() as one, scratch_folder() as other:
        assert one != other
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "checkpoint").write_text("x")
    with pytest.raises(KeyError), scratch_folder():
        raise KeyError
    assert files(temporary) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(temporary):
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", OPEN]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(2)]
    try:
        killed, living = (Path(process.stdout.readline().strip()) for process in processes)
        processes[0].kill()
        processes[0].wait()
        assert killed.is_dir()
        with scratch_folder():
            assert not killed.exists()
            assert (living / "checkpoint").read_text() == "half"
        processes[1].communicate("")
        assert files(temporary) == []
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_folder_whose_process_was_killed_while_it_made_it_is_removed(temporary):
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", DIE_IN_MKDIR + OPEN], env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert files(temporary) != []
    with scratch_folder():
        pass
    assert files(temporary) == []


def test_a_folder_that_others_may_enter_is_closed_and_a_link_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o777)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ValueError, match="must be your own folder, for temporary files"):
        private_folder(tmp_path / "link")
