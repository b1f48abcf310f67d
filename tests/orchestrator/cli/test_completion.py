"""The shell's Tab key: what is offered, and that nothing heavy is imported for it."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, json, sys
heavy = ("torch", "ray", "mlflow", "pandas", "numpy", "timm", "plotly")
atexit.register(lambda: print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr))
sys.argv = ["antiphon"]
from orchestrator.cli.app import program
program()
"""


def offered(shell: str, line: str) -> list[str]:
    """What the shell's script gets for the last word of a line."""
    words = line.split(" ")
    variables = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
    }[shell]
    environment = {**os.environ, "_ANTIPHON_COMPLETE": f"complete_{shell}", **variables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("antiphon ru", ["run", "runs"]),
        ("antiphon data ch", ["check"]),
        ("antiphon run esc10-t", ["esc10-teacher"]),
        ("antiphon run demo --see", ["--seeds"]),
    ],
)
def test_commands_options_and_recipes_are_completed_without_heavy_imports(line, words):
    assert offered("bash", line) == words


def test_zsh_gets_them_with_their_help():
    (line,) = [line for line in offered("zsh", "antiphon pla") if "plan" in line]
    assert "Compute the cost of a run" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_antiphon(shell):
    environment = {**os.environ, "_ANTIPHON_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert f"complete_{shell}" in done.stdout
