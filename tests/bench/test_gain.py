"""What teaching does in the demo, over five seeds: `make bench`. Prints the comparison and asserts no score."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))

pytestmark = pytest.mark.bench


def test_what_teaching_does_in_the_demo(tmp_path, capsys):
    command = [ANTIPHON, "run", "demo", "--local", "--seeds", "5", "--json", "--tracking", "none"]
    done = subprocess.run([*command, "--storage", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    compare = json.loads(done.stdout)["compare"]
    assert {row["seeds"] for row in compare.values()} == {5}
    with capsys.disabled():
        for student, row in compare.items():
            for name, score in ((row["metric"], row), ("log loss", row["log_loss"])):
                low, high = score["interval"]
                sides = f"taught {score['taught']:.3f}, untaught {score['untaught']:.3f}"
                print(f"\n{student} {name}: {sides}, {score['difference']:+.3f} ({low:+.3f} to {high:+.3f})", end="")
