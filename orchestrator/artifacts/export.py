"""Exports a published tagger to files for other programs: float, optionally int8, and a model card.

`workloads/export/export.py` writes and checks a file, `workloads/export/quantise.py` makes the int8 one,
`model_card.py` writes the card; this module owns the files' names, the scores and the latencies.

Axes: N clips of a set, B clips of a batch, M mel bands, F frames, C tags.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.artifacts.drafts import draft_folder
from orchestrator.artifacts.evaluate import prepare_for
from orchestrator.artifacts.model_card import write_card
from orchestrator.storage import published_folders
from workloads.config.architectures import DyMN
from workloads.config.recipe import Recipe
from workloads.data.batches import evaluation_batches
from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.evaluate import metrics
from workloads.evaluate.bootstrap import score_intervals
from workloads.evaluate.deliver import TEST_PREDICTIONS
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
from workloads.models.probabilities import merge_windows
from workloads.models.size import model_size
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.version import VERSION

CALIBRATION_CLIPS = 64
REPEATS = 15  # of each timed forward
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Target:
    """Which files to write; its options have been checked as far as possible without the tagger."""

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
        """All files that will be written."""
        return (self.path, self.card_path, *([self.int8_path] if self.int8 else []))


def check_target(out: str, *, to: str, front_end: str, int8: bool) -> Target:
    """Check the options of an export.

    Raises ValueError for an unknown or impossible option, a missing package or folder, and a file that exists already.
    """
    formats = {name: name for name in FORMATS}
    if to not in formats:
        raise ValueError(f"--to {to!r}: must be {', '.join(FORMATS)} or hub")
    if front_end not in ("inside", "outside"):
        raise ValueError(f"--front-end {front_end!r}: must be inside or outside")
    if int8 and to != "onnx":
        raise ValueError(
            f"--int8 with --to {to}: int8 files are made by ONNX Runtime, from ONNX files only; use --to onnx"
        )
    if int8 and front_end == "inside":
        raise ValueError("--int8 with --front-end inside: spectra need full precision; add --front-end outside")
    path = Path(out).expanduser()
    if path.suffix != f".{to}":
        raise ValueError(f"OUT {out!r}: a file for --to {to} must end in .{to}")
    if not path.parent.is_dir():
        raise ValueError(f"OUT {out!r}: there is no folder {path.parent}; create it first")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise ValueError(f"--to onnx: needs {', '.join(missing)}, not installed; pip install 'antiphon[export]'")
    target = Target(path, formats[to], front_end == "inside", int8)
    existing = [file for file in target.paths if file.exists()]
    if existing:
        raise ValueError(f"OUT {out!r}: {existing[0]} exists already; choose another name or remove it")
    return target


def export_checkpoint(uri: str, target: Target, recipe: Recipe | None) -> dict[str, Any]:
    """Write a published tagger to the files of `target`; returns what the card reports about them.

    `recipe` names the data on which an int8 file is calibrated and scored. All files are written under temporary names
    first, so that a failed check leaves none of them. Raises ValueError for a folder that holds no tagger and for data
    that it cannot be scored on (`prepare_for`).
    """
    tagger, state, interval = load_with_interval(uri)
    prepared = prepare_for(tagger, state, recipe, uri) if recipe else None
    with draft_folder(target.path.parent) as scratch:
        drafts = {path: scratch / path.name for path in target.paths}
        report = _write_float(tagger, state, drafts[target.path], target) | {"interval": interval}
        files = {"file": open_file(drafts[target.path], target.to)}
        if recipe and prepared:
            int8 = _write_int8(tagger, prepared, drafts[target.path], drafts[target.int8_path])
            report["int8"] = int8 | {"recipe": recipe.name, "file": target.int8_path.name}
            files["int8"] = open_file(drafts[target.int8_path], "onnx")
        report["latency_ms"] = _latencies(tagger, files, inside=target.front_end_inside)
        write_card(report, state, drafts[target.card_path])
        for path, draft in drafts.items():
            os.replace(draft, path)
    return report | {"checkpoint": uri, "files": [str(path) for path in target.paths]}


def load_with_interval(uri: str) -> tuple[Tagger, dict[str, Any], dict[str, Any] | None]:
    """A published tagger, its state, and the 95 % interval of its primary test score; None where it has none.

    Raises ValueError for a folder that holds no tagger.
    """
    with scratch_folder() as scratch:
        folder = published_folders.fetch(uri, scratch)
        tagger, state = load_tagger(folder, uri)
        if not (Path(published_folders.published_folder(str(folder))) / f"{TEST_PREDICTIONS}.safetensors").is_file():
            return tagger, state, None
        predictions = checkpoint.read_tensors(folder, TEST_PREDICTIONS, uri)
    logits_NC, y_NC = predictions["logits_NC"], predictions["y_NC"]
    primary = metrics.primary(tagger.labels)
    interval = score_intervals(logits_NC, y_NC, tagger.labels).get(primary)
    if interval is None:
        return tagger, state, None
    return tagger, state, {"score": primary, "low": interval[0], "high": interval[1], "clips": len(y_NC)}


def _write_float(tagger: Tagger, state: dict[str, Any], draft: Path, target: Target) -> dict[str, Any]:
    """Write and check the float file; returns its metadata, its sizes and its largest difference from PyTorch."""
    facts = file_facts(tagger, state, inside=target.front_end_inside)
    size = model_size(
        tagger.model, num_classes=len(tagger.tags), clip_seconds=tagger.clip_seconds, clip_rate=tagger.clip_rate
    )
    inside, long_clips = target.front_end_inside, state["long_clips"]
    difference = export(tagger, draft, to=target.to, front_end_inside=inside, long_clips=long_clips, metadata=facts)
    return {
        "file": target.path.name,
        "to": target.to,
        "facts": facts,
        "largest_difference": difference,
        "bytes": draft.stat().st_size,
        "params": size.params,
        "macs": size.macs,
        "int8": None,
    }


def file_facts(tagger: Tagger, state: dict[str, Any], *, inside: bool) -> dict[str, Any]:
    """What a program needs to use an exported tagger: the metadata stored inside the file."""
    front_end = tagger.front_end
    if inside:
        file_input: dict[str, Any] = {"kind": "waveform", "shape": ["clips", "samples"], "longest": None}
    else:
        frames = front_end.frames(tagger.clip_seconds)
        file_input = {
            "kind": "log-mel",
            "shape": ["clips", front_end.bands, "frames" if takes_any_length(tagger) else frames],
            "longest": max_length(tagger, front_end_inside=False),  # a named axis may have any length up to it
            "front_end": front_end.kind,
            "front_end_rate": front_end.rate,
            "note": f"not normalised: the network subtracts {tagger.mean:g} and divides by {tagger.std:g}",
        }
    return {
        "name": state["name"],
        "tags": list(tagger.tags),
        "labels": tagger.labels,
        "rate": tagger.clip_rate,
        "clip_seconds": tagger.clip_seconds,
        "long_clips": state["long_clips"],
        "input": file_input,
        "weights_sha256": checkpoint.weights_digest(tagger.state_dict()),
        **{key: state[key] for key in ("origin", "first_weights") if key in state},
        "antiphon": VERSION,
    }


def _write_int8(tagger: Tagger, prepared: PreparedData, path: Path, out: Path) -> dict[str, Any]:
    """Write the int8 file; returns its size and the scores of both files on the test part of the data."""
    clips = prepared.splits.test
    if not clips:
        raise ValueError("--int8: this data set has no test clips to score on; choose another data.test_fold")
    train = prepared.splits.train
    calibration = train[:: max(1, len(train) // CALIBRATION_CLIPS)][:CALIBRATION_CLIPS]
    share = quantise(path, out, (mel_BMF for _, mel_BMF in _mels(tagger, calibration, prepared)))
    scores = {}
    y_NC = torch.from_numpy(prepared.dataset.targets(clips))
    for name, runs in {"float": open_file(path, "onnx"), "int8": open_file(out, "onnx")}.items():
        windows: list[list[Tensor]] = [[] for _ in clips]
        for row, mel_BMF in _mels(tagger, clips, prepared):
            windows[row].append(torch.from_numpy(runs(mel_BMF)))
        logits_NC = torch.stack([merge_windows(torch.cat(own), tagger.labels) for own in windows])
        scores[name] = metrics.score(logits_NC, y_NC, tagger.labels)
    primary = metrics.primary(tagger.labels)
    return {
        "bytes": out.stat().st_size,
        "calibrated_on": len(calibration),
        "scored_on": len(clips),
        "tags_not_in_data": list(prepared.dataset.not_in_data),
        "score": primary,
        "scores": scores,
        "loss": scores["float"][primary] - scores["int8"][primary],
        "products": asdict(share),
        "sums_in_fp32": isinstance(tagger.model.arch, DyMN),  # how a file computes its depthwise convolutions
    }


def _mels(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The position of a clip, and mel_BMF of one of its windows, un-normalised; each window of each clip."""
    for (row,), shard in evaluation_batches(clips, prepared.dataset, prepared.cache, prepared.recipe.data, at_once=1):
        with torch.no_grad():
            yield row, tagger.front_end(shard.x_BT, shard.sound(tagger.front_end)).numpy()


def _latencies(tagger: Tagger, files: dict[str, Forward], *, inside: bool) -> dict[str, float]:
    """Median milliseconds per clip on one thread, of PyTorch and of each file, measured in turns in this process."""
    example = example_input(tagger, num_clips=1, front_end_inside=inside)
    forward = torch.no_grad()(tagger.tag if inside else tagger)
    calls: dict[str, Callable[[], object]] = {"pytorch": lambda: forward(example)}
    calls |= {name: lambda runs=runs: runs(example.numpy()) for name, runs in files.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + REPEATS):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first is a warm-up
