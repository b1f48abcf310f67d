"""A tagger as one file that runs without us: ONNX, or PyTorch's own .pt2. Knows no runs, no stores and no scores.

The file holds the network and, if wanted, its front end, for any number of clips and, where the network allows it, for
clips of any length. What a user of it must know (tags, rate, what goes in) travels inside the file as JSON.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from workloads.architectures import CED, MN, DyMN, EfficientNet, OnDevice
from workloads.config import Model
from workloads.tagger import Tagger

Format = Literal["onnx", "pt2"]
FORMATS = ("onnx", "pt2")
FACTS = "antiphon.json"  # the name under which a file carries what its user must know
LARGEST_DIFFERENCE = 1e-4  # of a logit, in units of the largest logit or of 1
OTHER_LENGTH = 0.8  # of a clip, at which a file for any length is checked


class ExportMismatch(RuntimeError):
    """The written file does not say what the tagger says."""


class Listener(nn.Module):
    """What is exported: x_BT at the tagger's rate, or its un-normalised log-mel mel_BMF, to logits_BC."""

    def __init__(self, tagger: Tagger, *, front_end_inside: bool) -> None:
        super().__init__()
        self.tagger, self.front_end_inside = tagger, front_end_inside

    def forward(self, heard: Tensor) -> Tensor:
        return self.tagger.tag(heard) if self.front_end_inside else self.tagger(heard)


def takes_any_length(model: Model) -> bool:
    """Whether a network hears clips of other lengths than it was built for; CED up to one window of 1012 frames."""
    if model.front_end.frames:
        return False
    if isinstance(model.arch, OnDevice):
        return model.arch.variant != "lstm_p"  # its loop over time is written out, step by step
    return isinstance(model.arch, DyMN | EfficientNet | CED) or (
        isinstance(model.arch, MN) and "t" not in model.arch.se_axes
    )


def export(tagger: Tagger, path: Path, *, to: Format, front_end_inside: bool, facts: dict[str, Any]) -> float:
    """Write the tagger to `path` and check the file against it; returns the largest difference of a logit.

    `facts` travel inside the file. Raises ExportMismatch where the file says something else than the tagger.
    """
    assert not tagger.training, "a file is made of a tagger that is done learning: call eval() first"
    listener = Listener(tagger, front_end_inside=front_end_inside).eval()
    example = _sound(tagger, clips=2, share=1.0, front_end_inside=front_end_inside)
    free = {0: Dim.DYNAMIC} | ({example.ndim - 1: Dim.DYNAMIC} if takes_any_length(tagger.model) else {})
    with torch.no_grad():
        program = torch.export.export(listener, (example,), dynamic_shapes=(free,), strict=False)
    if to == "pt2":
        torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})
    else:
        _write_onnx(program, example, path, facts)
    return _difference(listener, path, to)


def run_onnx(path: Path) -> "Any":
    """A function from an array of clips to logits_NC, by ONNX Runtime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def run(heard: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits_NC,) = session.run(None, {name: heard})
        return logits_NC

    return run


def run_pt2(path: Path) -> "Any":
    """A function from an array of clips to logits_NC, by PyTorch."""
    module = torch.export.load(path).module()

    def run(heard: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(heard)).numpy()

    return run


RUNNERS = {"onnx": run_onnx, "pt2": run_pt2}


def _write_onnx(program: ExportedProgram, example: Tensor, path: Path, facts: dict[str, Any]) -> None:
    written = torch.onnx.export(
        program, (example,), dynamo=True, verbose=False, input_names=["clips"], output_names=["logits"]
    )
    assert written is not None, "the dynamo exporter always returns a program"
    written.model.metadata_props[FACTS] = json.dumps(facts)
    written.save(path)


def _difference(listener: Listener, path: Path, to: Format) -> float:
    """How far the file's logits are from the tagger's, for one clip and three, and for shorter ones where it may."""
    run, largest = RUNNERS[to](path), 0.0
    shares = (1.0, OTHER_LENGTH) if takes_any_length(listener.tagger.model) else (1.0,)
    for share in shares:
        for clips in (1, 3):
            heard = _sound(listener.tagger, clips=clips, share=share, front_end_inside=listener.front_end_inside)
            with torch.no_grad():
                expected = listener(heard).numpy()
            difference = float(np.abs(run(heard.numpy()) - expected).max())
            if not difference <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
                raise ExportMismatch(
                    f"{path.name}: its logits for {clips} clips of {share:g} x the length differ by {difference:.2g} "
                    "from the tagger's; the file is not to be used"
                )
            largest = max(largest, difference)
    return largest


def _sound(tagger: Tagger, *, clips: int, share: float, front_end_inside: bool) -> Tensor:
    """Clips of noise, the same every time, as the exported file wants them."""
    generator = torch.Generator().manual_seed(clips)
    length = round(share * tagger.clip_seconds * tagger.clip_rate)
    x_BT = torch.randn(clips, length, generator=generator) * torch.logspace(-2, -0.5, clips)[:, None]
    if front_end_inside:
        return x_BT
    with torch.no_grad():
        return tagger.front_end(x_BT)
