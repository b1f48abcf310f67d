"""What an export that is ended leaves beside its target: nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.artifacts.drafts import draft_folder
from tests.processes import killed_at_the_end

PROGRAM = """
import signal, sys
from pathlib import Path
from orchestrator.artifacts.drafts import draft_folder
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with draft_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("half")
    print("written", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_ended_command_leaves_nothing(tmp_path: Path, which: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with killed_at_the_end(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(which)
        code = process.wait(timeout=60)
    assert code == (-which if which == signal.SIGINT else 128 + which)
    assert list(tmp_path.iterdir()) == []


def test_a_command_outlives_its_terminal_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with draft_folder(tmp_path) as folder:
            signal.raise_signal(signal.SIGHUP)
            assert folder.is_dir()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handler_of_before_is_there_again(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with draft_folder(tmp_path) as folder:
        assert signal.getsignal(signal.SIGTERM) is not before
        assert folder.parent == tmp_path
    assert signal.getsignal(signal.SIGTERM) is before
