"""The main job on real audio, on a development fold. Takes minutes, so it belongs to `make test-slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))


@pytest.mark.slow
def test_esc10_reaches_its_scores_on_a_development_fold(esc10, tmp_path):
    """Bounds are below the scores on folds 4 and 5. A fold has 80 clips: an accuracy is good to +-4.5 points."""
    where = ["--set", f"data.root={esc10}", "--set", "data.test_fold=4", "--storage", str(tmp_path)]
    done = subprocess.run([ANTIPHON, "run", "esc10", "--json", *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    models = json.loads(done.stdout)["models"]
    assert models["cnn"]["test"]["accuracy"] > 0.80
    assert models["vit"]["test"]["accuracy"] > 0.74
