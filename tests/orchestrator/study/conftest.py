"""Studies whose runs take a second or two, and one that is finished, shared by the tests of a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import small

STUDY = """
name = "tiny"
about = "a study of a few steps"
recipe = "demo"
folds = [1, 2]
seeds = [0, 1]
steps = 4
burn_in = 2
periods = [1]
standard = {standard}
[settings.data]
synthetic_clips = 100
clip_seconds = 1.0
cache = "{cache}"
[settings.train]
threads = 1
shard_size = 8
log_every = 1
eval_every = 2
checkpoint_every = 100
"""


@pytest.fixture
def study_file(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Writes a study of few small runs; returns the words of a command that runs it here."""

    def write(*lines: str, standard: str = '["mutual"]') -> list[str]:
        file = tmp_path / "tiny.toml"
        cache = tmp_path_factory.getbasetemp() / "clips"
        file.write_text(STUDY.format(cache=cache, standard=standard) + "\n".join(lines))
        sets = [word for setting in small.TWO_MODELS for word in ("--set", setting)]
        return ["study", str(file), "--storage", str(tmp_path / "runs"), "--tracking", "none", *sets]

    return write


def read_outcome(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])
