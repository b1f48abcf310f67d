"""A tagger as one file that runs without us: ONNX, or PyTorch's own .pt2. Knows no runs, no stores and no scores.

The file holds the network and, if wanted, its front end, for any number of clips and, where the network allows it, for
clips of any length. What a user of it must know (tags, rate, what goes in) travels inside the file as JSON.

Axes: B clips (N of a whole set), T samples, M mel bands, F frames, C tags.
"""

import json
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

from workloads.config.architectures import CED, MN, DyMN, EfficientNet, OnDevice
from workloads.models.tagger import Tagger

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
Runs = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # clips, or their mels, to logits_BC
FACTS = "antiphon.json"  # the name under which a file carries what its user must know
LARGEST_DIFFERENCE = 1e-4  # of a logit, in units of the largest logit or of 1
SHARES = (1.0, 0.93, 0.87, 0.8, 0.71)  # of a clip, at which a file for any length is checked: odd and even halves
HARMLESS = (  # what torch warns its own authors of
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "No complete tensor found in the group",
    "The given buffer is not writable",
)


class ExportMismatch(RuntimeError):
    """The written file does not say what the tagger says."""


class Listener(nn.Module):
    """What is exported: x_BT at the tagger's rate, or its un-normalised log-mel mel_BMF, to logits_BC."""

    def __init__(self, tagger: Tagger, *, front_end_inside: bool) -> None:
        super().__init__()
        self.tagger, self.front_end_inside = tagger, front_end_inside

    def forward(self, heard: Tensor) -> Tensor:
        return self.tagger.tag(heard) if self.front_end_inside else self.tagger(heard)


def takes_any_length(tagger: Tagger) -> bool:
    """Whether a file of this network hears clips of other lengths than it was built for; `longest` may bound them."""
    arch = tagger.model.arch
    if tagger.model.front_end.frames:
        return False
    if isinstance(arch, OnDevice):
        return arch.variant != "lstm_p"  # its loop over time is written out, step by step
    if isinstance(arch, CED):  # a file holds as many windows as the clip that it is made with
        return tagger.front_end.frames(tagger.clip_seconds) <= _ced_window()
    return isinstance(arch, DyMN | EfficientNet) or (isinstance(arch, MN) and "t" not in arch.se_axes)


def longest(tagger: Tagger, *, front_end_inside: bool) -> int | None:
    """The most samples, or frames, that a file for any length hears: one window of CED's. None: there is no bound."""
    if not isinstance(tagger.model.arch, CED) or not takes_any_length(tagger):
        return None
    rate, window = tagger.clip_rate, _ced_window()
    if not front_end_inside:
        return window
    lengths = range(round(2 * rate * tagger.clip_seconds * window / tagger.front_end.frames(tagger.clip_seconds)))
    return bisect_right(lengths, window, lo=rate, key=lambda samples: tagger.front_end.frames(samples / rate)) - 1


def _ced_window() -> int:
    from workloads.models.ced import WINDOW  # with timm, which nobody else should wait for

    return WINDOW


def export(
    tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool, facts: Mapping[str, object] | None = None
) -> float:
    """Write the tagger to `path` and check the file against it (`check`); returns the largest difference of a logit.

    `facts` travel inside the file, as JSON. Raises ExportMismatch where the file says something else than the tagger.
    """
    assert not tagger.training, "a file is made of a tagger that is done learning: call eval() first"
    listener = Listener(tagger, front_end_inside=front_end_inside).eval()
    example = some_sound(tagger, clips=2, front_end_inside=front_end_inside)
    bound = longest(tagger, front_end_inside=front_end_inside)
    free: dict[int, Any] = {0: Dim.DYNAMIC}
    if takes_any_length(tagger):
        free[example.ndim - 1] = Dim.DYNAMIC if bound is None else Dim.DYNAMIC(max=bound)
    said = json.dumps(facts or {})
    with _quiet(), torch.no_grad():
        program = torch.export.export(listener, (example,), dynamic_shapes=(free,), strict=False)
        if to == "pt2":
            torch.export.save(program, path, extra_files={FACTS: said})
        else:
            _write_onnx(program, example, path, said)
    return check(tagger, path, to=to, front_end_inside=front_end_inside)


def check(tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool) -> float:
    """How far a file's logits are from the tagger's, for one clip and three; where it may, also for other lengths.

    Raises ExportMismatch where that is more than LARGEST_DIFFERENCE.
    """
    runs, largest = open_file(path, to), 0.0
    listener = Listener(tagger, front_end_inside=front_end_inside).eval()
    shares = SHARES if takes_any_length(tagger) else SHARES[:1]
    if (most := longest(tagger, front_end_inside=True)) is not None:
        shares = (*shares, most / round(tagger.clip_seconds * tagger.clip_rate))
    for share in shares:
        for clips in (1, 3):
            heard = some_sound(tagger, clips=clips, share=share, front_end_inside=front_end_inside)
            with torch.no_grad():
                expected_BC = listener(heard).numpy()
            difference = float(np.abs(runs(heard.numpy()) - expected_BC).max())
            if not difference <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected_BC).max())):  # also of a NaN
                raise ExportMismatch(
                    f"{path.name}: its logits for {clips} clips of {share:g} x the length differ by {difference:.2g} "
                    "from the tagger's; the file is not to be used"
                )
            largest = max(largest, difference)
    return largest


def open_file(path: Path, to: Format) -> Runs:
    """A function from clips (or mels) to logits_BC: ONNX Runtime on one thread of the CPU, or PyTorch."""
    return _open_onnx(path) if to == "onnx" else _open_pt2(path)


def some_sound(tagger: Tagger, *, clips: int, share: float = 1.0, front_end_inside: bool) -> Tensor:
    """Clips of noise, the same every time, as an exported file wants them: x_BT or mel_BMF."""
    generator = torch.Generator().manual_seed(clips)
    length = round(share * tagger.clip_seconds * tagger.clip_rate)
    x_BT = torch.randn(clips, length, generator=generator) * torch.logspace(-2, -0.5, clips)[:, None]
    if front_end_inside:
        return x_BT
    with torch.no_grad():
        return tagger.front_end(x_BT)


def _write_onnx(program: ExportedProgram, example: Tensor, path: Path, facts: str) -> None:
    written = torch.onnx.export(
        program, (example,), dynamo=True, verbose=False, input_names=["clips"], output_names=["logits"]
    )
    assert written is not None, "the dynamo exporter always returns a program"
    written.model.metadata_props[FACTS] = facts
    written.save(path)


def _open_onnx(path: Path) -> Runs:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def runs(heard: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits_BC,) = session.run(None, {name: heard})
        return logits_BC

    return runs


def _open_pt2(path: Path) -> Runs:
    with _quiet():
        module = torch.export.load(path).module()

    def runs(heard: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(heard)).numpy()

    return runs


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message)
        yield
