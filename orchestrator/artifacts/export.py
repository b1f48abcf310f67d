"""A published tagger as a file for other programs: checked, timed, if wanted in int8, and with a model card beside it.

`workloads/export.py` writes and checks the file, `workloads/quantise.py` makes the int8 one, `card.py` words the card.

Axes: N clips of a set, B clips of a batch, M mel bands, F frames, C tags.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.artifacts.evaluate import prepare_for
from orchestrator.artifacts.model_card import write_card
from orchestrator.storage import object_store
from workloads.config.architectures import DyMN
from workloads.config.recipe import Recipe
from workloads.data.batches import evaluation_batch
from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.evaluate import metrics
from workloads.evaluate.predict import load_tagger
from workloads.export.export import (
    FORMATS,
    Format,
    Forward,
    example_input,
    export,
    max_length,
    open_file,
    takes_any_length,
)
from workloads.export.quantise import quantise
from workloads.models.size import model_size
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint

CALIBRATION_CLIPS = 64
REPEATS = 15  # of a timed forward
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Target:
    """What is to be written, checked as far as that goes without the tagger."""

    path: Path
    to: Format
    front_end_inside: bool
    int8: bool

    @property
    def int8_path(self) -> Path:
        return self.path.with_suffix(".int8.onnx")

    @property
    def card_path(self) -> Path:
        return self.path.with_name(self.path.name + ".md")

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that will be written."""
        return (self.path, self.card_path, *([self.int8_path] if self.int8 else []))


def target(out: str, *, to: str, front_end: str, int8: bool) -> Target:
    """Where the files go; ValueError where something is there, or for what cannot be done."""
    formats = {name: name for name in FORMATS}
    if to not in formats:
        raise ValueError(f"--to {to!r}: must be {' or '.join(FORMATS)}")
    if front_end not in ("inside", "outside"):
        raise ValueError(f"--front-end {front_end!r}: must be inside or outside")
    if int8 and to != "onnx":
        raise ValueError(f"--int8 with --to {to}: ONNX Runtime makes int8, of ONNX files only; use --to onnx")
    if int8 and front_end == "inside":
        raise ValueError("--int8 with --front-end inside: spectra need full precision; add --front-end outside")
    path = Path(out).expanduser()
    if path.suffix != f".{to}":
        raise ValueError(f"OUT {out!r}: a file for --to {to} must end in .{to}")
    if not path.parent.is_dir():
        raise ValueError(f"OUT {out!r}: there is no folder {path.parent}; make it first")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise ValueError(f"--to onnx: needs {', '.join(missing)}, not installed; pip install 'antiphon[export]'")
    wanted = Target(path, formats[to], front_end == "inside", int8)
    for there in wanted.paths:
        if there.exists():
            raise ValueError(f"OUT {out!r}: {there} exists already; choose another name or remove it")
    return wanted


def export_checkpoint(uri: str, wanted: Target, recipe: Recipe | None) -> dict[str, Any]:
    """Write a published tagger as `wanted` says; returns what is known of the files, as the card tells it.

    `recipe` names the data that an int8 file is calibrated and scored on. Nothing is left behind where the check fails.
    Raises ValueError for a folder that holds no tagger and for data with other tags.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = object_store.fetch(uri, Path(scratch))
        tagger, state = load_tagger(folder)
    prepared = prepare_for(tagger, state, recipe, uri) if recipe else None
    with tempfile.TemporaryDirectory(dir=wanted.path.parent, prefix=".export-") as scratch:
        drafts = {path: Path(scratch) / path.name for path in wanted.paths}
        told = _write(tagger, state, drafts[wanted.path], wanted)
        heard = example_input(tagger, num_clips=1, front_end_inside=wanted.front_end_inside)
        hearing: dict[str, Forward] = {"file": open_file(drafts[wanted.path], wanted.to)}
        if recipe and prepared:
            int8 = _quantised(tagger, prepared, drafts[wanted.path], drafts[wanted.int8_path])
            told["int8"] = int8 | {"recipe": recipe.name, "file": wanted.int8_path.name}
            hearing["int8"] = open_file(drafts[wanted.int8_path], "onnx")
        told["latency_ms"] = _latencies(tagger, heard, hearing, inside=wanted.front_end_inside)
        write_card(told, state, drafts[wanted.card_path])
        for path, draft in drafts.items():
            os.replace(draft, path)
    return told | {"checkpoint": uri, "files": [str(path) for path in wanted.paths]}


def _write(tagger: Tagger, state: dict[str, Any], draft: Path, wanted: Target) -> dict[str, Any]:
    """The float file, checked; what travels in it and what it weighs."""
    facts = _facts(tagger, state, inside=wanted.front_end_inside)
    size = model_size(
        tagger.model, num_classes=len(tagger.tags), clip_seconds=tagger.clip_seconds, clip_rate=tagger.clip_rate
    )
    difference = export(tagger, draft, to=wanted.to, front_end_inside=wanted.front_end_inside, metadata=facts)
    return {
        "file": wanted.path.name,
        "to": wanted.to,
        "facts": facts,
        "largest_difference": difference,
        "bytes": draft.stat().st_size,
        "params": size.params,
        "macs": size.macs,
        "int8": None,
    }


def _facts(tagger: Tagger, state: dict[str, Any], *, inside: bool) -> dict[str, Any]:
    """What travels inside the file."""
    front_end, any_length = tagger.front_end, takes_any_length(tagger)
    samples = round(tagger.clip_seconds * tagger.clip_rate)
    if inside:
        goes_in: dict[str, Any] = {"kind": "waveform", "shape": ["clips", "samples" if any_length else samples]}
    else:
        frames = front_end.frames(tagger.clip_seconds)
        goes_in = {
            "kind": "log-mel",
            "shape": ["clips", front_end.bands, "frames" if any_length else frames],
            "front_end": front_end.kind,
            "front_end_rate": front_end.rate,
            "note": f"as it comes: the network itself takes off {tagger.mean:g} and divides by {tagger.std:g}",
        }
    return {
        "name": state["name"],
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "rate": tagger.clip_rate,
        "clip_seconds": tagger.clip_seconds,
        "input": goes_in | {"longest": max_length(tagger, front_end_inside=inside)},  # named axes may have any length
        "weights_sha256": checkpoint.weights_digest(tagger.state_dict()),
        **{key: state[key] for key in ("origin", "first_weights") if key in state},
        "antiphon": version("antiphon"),
    }


def _quantised(tagger: Tagger, prepared: PreparedData, path: Path, out: Path) -> dict[str, Any]:
    """The int8 file, and how both files score on the test part of the data."""
    clips = prepared.splits.test
    if not clips:
        raise ValueError("--int8: this data set has no test clips to score on; choose another data.test_fold")
    train = prepared.splits.train
    calibration = train[:: max(1, len(train) // CALIBRATION_CLIPS)][:CALIBRATION_CLIPS]
    share = quantise(path, out, _mels(tagger, calibration, prepared))
    scores = {}
    y_NC = torch.from_numpy(prepared.dataset.targets(clips))
    for name, runs in {"float": open_file(path, "onnx"), "int8": open_file(out, "onnx")}.items():
        logits_NC = np.concatenate([runs(mel_BMF) for mel_BMF in _mels(tagger, clips, prepared)])
        scores[name] = metrics.score(torch.from_numpy(logits_NC), y_NC, tagger.labels)
    primary = metrics.primary(tagger.labels)
    return {
        "bytes": out.stat().st_size,
        "calibrated_on": len(calibration),
        "scored_on": len(clips),
        "score": primary,
        "scores": scores,
        "loss": scores["float"][primary] - scores["int8"][primary],
        "products": asdict(share),
        "sums_in_fp32": isinstance(tagger.model.arch, DyMN),  # its depthwise convolutions, in a file
    }


def _mels(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData) -> Iterator[NDArray[np.float32]]:
    """mel_BMF of each clip, un-normalised."""
    for clip in clips:
        shard = evaluation_batch([clip], prepared.dataset, prepared.cache, prepared.recipe)
        with torch.no_grad():
            yield tagger.front_end(shard.x_BT).numpy()


def _latencies(tagger: Tagger, heard: torch.Tensor, hearing: dict[str, Forward], *, inside: bool) -> dict[str, float]:
    """Median milliseconds a clip on one thread, of PyTorch and of each file, taken in turns in this process."""
    forward = torch.no_grad()(tagger.tag if inside else tagger)
    tries: dict[str, Callable[[], object]] = {"pytorch": lambda: forward(heard)}
    tries |= {name: lambda runs=runs: runs(heard.numpy()) for name, runs in hearing.items()}  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in tries}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + REPEATS):
            for name, try_it in tries.items():
                began = time.perf_counter()
                try_it()
                taken[name].append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first one warms up
