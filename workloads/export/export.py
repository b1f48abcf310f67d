"""A tagger as one file that runs without this project: ONNX, or PyTorch's .pt2. Does not depend on runs or data sets.

The file holds the network and, optionally, its front end, for any number of clips and, where the network allows it, for
clips of any length. Metadata that a user of the file needs (tags, rate, kind of input) is stored in the file as JSON.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from workloads.config.architectures import CED, MN, DyMN, EfficientNet, FrameMN, OnDevice
from workloads.models.tagger import Tagger
from workloads.runtime.json_files import json_text

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # waveforms or mels to logits_BC
METADATA_KEY = "antiphon.json"  # the name of the JSON metadata within a file
MAX_DIFFERENCE = 1e-4  # of a logit, in units of the largest logit or of 1
LENGTH_RATIOS = (1.0, 0.93, 0.87, 0.8, 0.71)  # at which a file for any length is checked: odd and even halves
IGNORED_WARNINGS = (  # meant for torch's own developers
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "No complete tensor found in the group",
    "The given buffer is not writable",
    r"The tensor attributes .*_flat_weights.* were assigned during export",  # nn.GRU's; `check` compares the logits
)


class ExportMismatch(RuntimeError):
    """The logits of the written file differ from the tagger's."""


class ExportedModule(nn.Module):
    """The module that is exported: x_BT at the tagger's rate, or its un-normalised log-mel mel_BMF, to logits_BC."""

    def __init__(self, tagger: Tagger, *, front_end_inside: bool) -> None:
        super().__init__()
        self.tagger, self.front_end_inside = tagger, front_end_inside

    def forward(self, clips: Tensor) -> Tensor:
        return self.tagger.tag(clips) if self.front_end_inside else self.tagger(clips)


def takes_any_length(tagger: Tagger) -> bool:
    """Whether a file of this network accepts clips of other lengths than the tagger's, at most `max_length`."""
    arch = tagger.model.arch
    if tagger.model.front_end.frames:
        return False
    if isinstance(arch, OnDevice):
        return arch.variant == "tc_resnet"  # the others are recurrent: torch.export fixes the number of their steps
    if isinstance(arch, CED):  # a file holds a fixed number of windows, that of the example clip
        return tagger.num_frames <= _ced_window()
    return isinstance(arch, DyMN | EfficientNet | FrameMN) or (isinstance(arch, MN) and "t" not in arch.se_axes)


def max_length(tagger: Tagger, *, front_end_inside: bool) -> int | None:
    """The most samples, or frames, that a file for any length accepts: one window of CED's. None: no bound."""
    if not isinstance(tagger.model.arch, CED) or not takes_any_length(tagger):
        return None
    rate, window = tagger.clip_rate, _ced_window()
    if not front_end_inside:
        return window
    lengths = range(round(2 * rate * tagger.clip_seconds * window / tagger.num_frames))
    return bisect_right(lengths, window, lo=rate, key=lambda samples: tagger.front_end.frames(samples / rate)) - 1


def _ced_window() -> int:
    from workloads.models.ced import WINDOW  # imports timm, which takes seconds and only CED needs

    return WINDOW


def export(
    tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool, metadata: Mapping[str, object] | None = None
) -> float:
    """Write the tagger to `path` and compare the file with it (`check`); returns the largest difference of a logit.

    `metadata` is stored in the file as JSON. Raises ExportMismatch where the file's logits differ from the tagger's.
    """
    assert not tagger.training, "a file is made of a trained tagger in eval mode: call eval() first"
    module = ExportedModule(tagger, front_end_inside=front_end_inside).eval()
    example = example_input(tagger, num_clips=2, front_end_inside=front_end_inside)
    bound = max_length(tagger, front_end_inside=front_end_inside)
    dynamic: dict[int, Any] = {0: Dim.DYNAMIC}
    if takes_any_length(tagger):
        dynamic[example.ndim - 1] = Dim.DYNAMIC if bound is None else Dim.DYNAMIC(max=bound)
    metadata_json = json_text(metadata or {})
    with _ignore_warnings(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,), strict=False)
        if to == "pt2":
            torch.export.save(program, path, extra_files={METADATA_KEY: metadata_json})
        else:
            _write_onnx(program, example, path, metadata_json)
    return check(tagger, path, to=to, front_end_inside=front_end_inside)


def check(tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool) -> float:
    """The largest difference between a file's logits and the tagger's, for one clip and three.

    Where the file takes any length, also for other lengths. Raises ExportMismatch where a difference is more than
    MAX_DIFFERENCE.
    """
    forward, largest = open_file(path, to), 0.0
    module = ExportedModule(tagger, front_end_inside=front_end_inside).eval()
    ratios = LENGTH_RATIOS if takes_any_length(tagger) else LENGTH_RATIOS[:1]
    if (most := max_length(tagger, front_end_inside=True)) is not None:
        ratios = (*ratios, most / round(tagger.clip_seconds * tagger.clip_rate))
    for ratio in ratios:
        for num_clips in (1, 3):
            clips = example_input(tagger, num_clips=num_clips, ratio=ratio, front_end_inside=front_end_inside)
            with torch.no_grad():
                expected_BC = module(clips).numpy()
            difference = float(np.abs(forward(clips.numpy()) - expected_BC).max())
            if not difference <= MAX_DIFFERENCE * max(1.0, float(np.abs(expected_BC).max())):  # also true for NaN
                raise ExportMismatch(
                    f"{path.name}: its logits for {num_clips} clips of {ratio:g} x the length differ by "
                    f"{difference:.2g} from the tagger's; do not use this file"
                )
            largest = max(largest, difference)
    return largest


def open_file(path: Path, to: Format) -> Forward:
    """A function from waveforms (or mels) to logits_BC: ONNX Runtime on one thread of the CPU, or PyTorch."""
    return _open_onnx(path) if to == "onnx" else _open_pt2(path)


def example_input(tagger: Tagger, *, num_clips: int, ratio: float = 1.0, front_end_inside: bool) -> Tensor:
    """Clips of noise, the same in every call, as input of an exported file: x_BT or mel_BMF.

    Their length is `ratio` times that of the tagger's clips.
    """
    generator = torch.Generator().manual_seed(num_clips)
    length = round(ratio * tagger.clip_seconds * tagger.clip_rate)
    x_BT = torch.randn(num_clips, length, generator=generator) * torch.logspace(-2, -0.5, num_clips)[:, None]
    if front_end_inside:
        return x_BT
    with torch.no_grad():
        return tagger.front_end(x_BT)


def _write_onnx(program: ExportedProgram, example: Tensor, path: Path, metadata_json: str) -> None:
    written = torch.onnx.export(
        program, (example,), dynamo=True, verbose=False, input_names=["clips"], output_names=["logits"]
    )
    assert written is not None, "the dynamo exporter always returns a program"
    written.model.metadata_props[METADATA_KEY] = metadata_json
    written.save(path)


def _open_onnx(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def forward(clips: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits_BC,) = session.run(None, {name: clips})
        return logits_BC

    return forward


def _open_pt2(path: Path) -> Forward:
    with _ignore_warnings():
        module = torch.export.load(path).module()

    def forward(clips: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(clips)).numpy()

    return forward


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield
