"""First weights from a published tagger: what a run takes, and what it refuses before the first step."""

from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.config import Recipe
from workloads.train import Run, loop

TAUGHT = ("schedule.teacher_steps=0", "schedule.steps=2")


@pytest.fixture
def published(tiny: Callable[..., Recipe], start: Callable[..., Run]) -> Callable[..., str]:
    """Trains two steps and returns the folder of a published model; `settings` may change what it heard or was told."""

    def make(*settings: str) -> str:
        plan = ("schedule.teacher_steps=1", "schedule.steps=1")
        run = start(tiny("one-way", *plan, *settings))
        assert loop(run) == "done"
        (folder,) = Path(run.session.work_dir.parent).rglob("models/cnn/weights.safetensors")
        return str(folder.parent)

    return make


def test_a_frozen_teacher_is_its_published_self(tiny, start, published) -> None:
    folder = published()
    run = start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))
    assert loop(run) == "done"
    again = run.session.work_dir.parent / "models" / "cnn" / "weights.safetensors"
    assert again.read_bytes() == (Path(folder) / "weights.safetensors").read_bytes()


def test_weights_that_heard_another_front_end_are_refused(tiny, start, published) -> None:
    folder = published()
    with pytest.raises(ValueError, match=r"its weights hear logmel64; set models\.cnn\.front_end\.kind = 'logmel64'"):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}", 'models.cnn.front_end={kind="kaldi128"}'))


def test_a_frozen_teacher_without_a_head_for_these_tags_is_refused(tiny, start, published, tmp_path) -> None:
    """Its last layer would be drawn at random, and it would never learn better."""
    folder = Path(published())
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state.replace('"chirp_up"', '"chirp"'))
    assert (folder / "state.json").read_text() != state
    with pytest.raises(ValueError, match=r"models\.cnn\.init.*cnn never learns them"):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))
    assert start(tiny("one-way", f"models.cnn.init={folder}", "schedule.teacher_steps=1"))  # learning mends it
