"""A tagger as one file that runs without this project: ONNX, or PyTorch's .pt2. Does not depend on runs or data sets.

The file holds the network and, optionally, its front end, for any number of clips. With the front end it takes
waveforms of any length, as `whole_sounds.py` says; without, log-mels of any length where the network allows it.
Metadata that a user of the file needs (tags, rate, kind of input) is stored in the file as JSON.

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
import torch.fx.experimental._config
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from workloads.config.architectures import CED, MN, DyMN, EfficientNet, FrameMN, OnDevice
from workloads.export.whole_sounds import WholeSounds
from workloads.models.tagger import Tagger
from workloads.runtime.json_files import json_text

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # waveforms or mels to logits_BC
METADATA_KEY = "antiphon.json"  # the name of the JSON metadata within a file
MAX_DIFFERENCE = 1e-4  # of a logit, in units of the largest logit or of 1
LENGTH_RATIOS = (1.0, 0.93, 0.87, 0.8, 0.71)  # at which a file for log-mels of any length is checked: odd, even halves
# Waveforms of one window, of less and of several, at which a file for them is checked: length in windows, number
WAVEFORMS = ((1.0, 1), (1.0, 3), (0.3, 1), (0.3, 3), (2.4, 1))
IGNORED_WARNINGS = (  # meant for torch's own developers
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "No complete tensor found in the group",
    "The given buffer is not writable",
    r"The tensor attributes .*_flat_weights.* were assigned during export",  # nn.GRU's; `check` compares the logits
)


class ExportMismatch(RuntimeError):
    """The logits of the written file differ from the tagger's."""


class LogMels(nn.Module):
    """Un-normalised log-mels mel_BMF of the tagger's front end to logits_BC."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, clips: Tensor) -> Tensor:
        return self.tagger(clips)


def exported_module(tagger: Tagger, *, front_end_inside: bool, long_clips: str) -> nn.Module:
    """What is exported: waveforms at the tagger's rate, or its log-mels, to logits_BC."""
    return (WholeSounds(tagger, long_clips=long_clips) if front_end_inside else LogMels(tagger)).eval()


def takes_any_length(tagger: Tagger) -> bool:
    """Whether this network hears log-mels of other lengths than its clips', at most `max_length`."""
    arch = tagger.model.arch
    if tagger.model.front_end.frames:
        return False
    if isinstance(arch, OnDevice):
        return arch.variant == "tc_resnet"  # the others are recurrent: torch.export fixes the number of their steps
    if isinstance(arch, CED):  # a file holds a fixed number of windows, that of the example clip
        return tagger.num_frames <= _ced_window()
    return isinstance(arch, DyMN | EfficientNet | FrameMN) or (isinstance(arch, MN) and "t" not in arch.se_axes)


def max_length(tagger: Tagger, *, front_end_inside: bool) -> int | None:
    """The most frames that a network for any length hears, or samples that make them: one window of CED's. None: no
    bound."""
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
    tagger: Tagger,
    path: Path,
    *,
    to: Format,
    front_end_inside: bool,
    long_clips: str = "windows",
    metadata: Mapping[str, object] | None = None,
) -> float:
    """Write the tagger to `path` and compare the file with it (`check`); returns the largest difference of a logit.

    With its front end inside, the file hears waveforms longer than a clip by the rule `long_clips`. `metadata` is
    stored in it as JSON. Raises ExportMismatch where the file's logits differ from the tagger's.
    """
    assert not tagger.training, "a file is made of a trained tagger in eval mode: call eval() first"
    module = exported_module(tagger, front_end_inside=front_end_inside, long_clips=long_clips)
    # of several windows, because torch.export takes a size of 1 for a constant
    ratio = 2.5 if front_end_inside else 1.0
    example = example_input(tagger, num_clips=2, ratio=ratio, front_end_inside=front_end_inside)
    dynamic: dict[int, Any] = {0: Dim.DYNAMIC}
    if front_end_inside:
        dynamic[1] = Dim.DYNAMIC
    elif takes_any_length(tagger):
        bound = max_length(tagger, front_end_inside=False)
        dynamic[2] = Dim.DYNAMIC if bound is None else Dim.DYNAMIC(max=bound)
    metadata_json = json_text(metadata or {})
    # torch takes a number that is not 1 in the example, as that of windows, never to be 1, though the same graph
    # computes that too: a .pt2 would refuse it (ONNX keeps no such guards). `check` compares what the file says of one.
    config: Any = torch.fx.experimental._config  # its module makes `patch` when it is imported
    of_any_number = config.patch(backed_size_oblivious=front_end_inside and to == "pt2")
    with _ignore_warnings(), torch.no_grad(), of_any_number:
        program = torch.export.export(module, (example,), dynamic_shapes=(dynamic,), strict=False)
        if to == "pt2":
            program._guards_code = []
            torch.export.save(program, path, extra_files={METADATA_KEY: metadata_json})
        else:
            _write_onnx(program, example, path, metadata_json)
    return check(tagger, path, to=to, front_end_inside=front_end_inside, long_clips=long_clips)


def check(tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool, long_clips: str = "windows") -> float:
    """The largest difference between a file's logits and the tagger's, for one clip and three.

    Where the file takes any length, also for other lengths. Raises ExportMismatch where a difference is more than
    MAX_DIFFERENCE.
    """
    forward, largest = open_file(path, to), 0.0
    module = exported_module(tagger, front_end_inside=front_end_inside, long_clips=long_clips)
    for ratio, num_clips in WAVEFORMS if front_end_inside else _mels_to_check(tagger):
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


def _mels_to_check(tagger: Tagger) -> list[tuple[float, int]]:
    """Log-mels at which a file for them is checked: length in clips, number of clips."""
    ratios = LENGTH_RATIOS if takes_any_length(tagger) else LENGTH_RATIOS[:1]
    if (most := max_length(tagger, front_end_inside=True)) is not None:
        ratios = (*ratios, most / round(tagger.clip_seconds * tagger.clip_rate))
    return [(ratio, num_clips) for ratio in ratios for num_clips in (1, 3)]


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
