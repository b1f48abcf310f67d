"""The official projects that benches compare with, and clips for both."""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

CLIPS, SECONDS, TAGS = 128, 10, 527
COMMON_NAMES = ("models", "helpers", "datasets", "dataset", "utils", "augment", "run")  # of modules of several projects


@pytest.fixture(scope="module")
def official() -> Path:
    folder = os.environ.get("ANTIPHON_OFFICIAL")
    if not folder:
        pytest.skip("set ANTIPHON_OFFICIAL to a folder with checkouts of EfficientAT, ast and CED")
    return Path(folder)


@pytest.fixture
def project(official: Path, monkeypatch: Any) -> Any:
    """Make a project's own modules importable by their names, and no other project's."""

    def enter(name: str) -> Path:
        root = official / name
        if not root.is_dir():
            pytest.skip(f"ANTIPHON_OFFICIAL has no folder {name}")
        for module in [module for module in sys.modules if module.split(".")[0] in COMMON_NAMES]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(str(root))
        monkeypatch.chdir(root)  # some read tables below it
        return root

    return enter


@pytest.fixture
def clips(tmp_path: Path) -> Callable[[int, str], list[Path]]:
    """Ten seconds of noise each, at a rate, in a format of libsndfile's."""

    def write(rate: int, container: str) -> list[Path]:
        paths = [tmp_path / f"Y{number:03}.{container.lower()}" for number in range(CLIPS)]
        for number, path in enumerate(paths):
            soundfile.write(path, np.random.default_rng(number).uniform(-0.3, 0.3, rate * SECONDS), rate)
        return paths

    return write


def load_module(name: str, path: Path, **changed: str) -> Any:
    """A module of an official project; `changed` replaces texts in its source."""
    source = path.read_text()
    for before, after in changed.values():
        assert before in source, f"{path}: has no {before!r}"
        source = source.replace(before, after)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


@pytest.fixture
def efficientats_clips(official: Path, clips: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., Any]:
    """EfficientAT's data set of MP3s in HDF5, with its own options, and the same clips as files."""
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("av")
    paths = clips(32_000, "MP3")
    monkeypatch.setattr(np.random, "random_integers", lambda low, high: np.random.randint(low, high + 1), raising=False)
    helpers = types.ModuleType("datasets.helpers")
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setitem(sys.modules, "datasets.helpers", helpers)
    root = official / "EfficientAT" / "datasets"
    load_module("datasets.helpers.audiodatasets", root / "helpers" / "audiodatasets.py")
    module = load_module(
        "datasets.audioset", root / "audioset.py", folder=("dataset_dir = None", f"dataset_dir = {str(tmp_path)!r}")
    )
    with h5py.File(tmp_path / "balanced_train_segments_mp3.hdf", "w") as file:
        file["audio_name"] = np.array([f"{path.stem}.mp3" for path in paths], "S20")
        sounds = file.create_dataset("mp3", (CLIPS,), dtype=h5py.vlen_dtype(np.uint8))
        for number, path in enumerate(paths):
            sounds[number] = np.frombuffer(path.read_bytes(), np.uint8)
        file["target"] = np.packbits(np.eye(CLIPS, TAGS, dtype=np.uint8), axis=-1)
    return lambda **options: (paths, module.get_training_set(**options))
