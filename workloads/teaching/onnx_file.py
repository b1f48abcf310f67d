"""An ONNX file as a function from waveforms or log-mels to logits, an embedding, or both. Does not depend on what it is
used for.

Runs on the CPU.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.export.export import METADATA_KEY

WHAT = {"output": "logits", "embedding": "embedding's numbers"}


class OnnxFile:
    """The file at `path`, called with x_BT or mel_BMF of any number of clips; `place` begins every message.

    `outputs` says by key of the recipe which of its outputs are wanted, by name: `output`, the logits, "" where they
    are called logits or are the only one, and `embedding`. An input with one axis more gets an axis of size 1 after the
    first. A file for one clip at a time is called for each. Raises ValueError for a file that is none, or has several
    inputs, or no output of a name.
    """

    def __init__(self, path: Path, *, place: str, outputs: Mapping[str, str], threads: int) -> None:
        self._place = place
        self._session = _open(path, place, threads)
        inputs, names = self._session.get_inputs(), [entry.name for entry in self._session.get_outputs()]
        if len(inputs) != 1:
            raise ValueError(f"{place}: the file has {len(inputs)} inputs; one is expected, with waveforms or log-mels")
        self._input, self._shape = inputs[0].name, list(inputs[0].shape)
        self._outputs = {key: name or _logits_of(names) for key, name in outputs.items()}
        for key, name in self._outputs.items():
            if name not in names:
                raise ValueError(
                    f"{place}.{key} = {outputs[key]!r}: must be the one of the file's outputs that holds the "
                    f"{WHAT[key]}: {', '.join(names)}"
                )
        self.metadata = _parsed(self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))

    def __call__(self, clips: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """By key the values of each clip, (B, width) each; ValueError where the file does not take these clips, or
        gives other than a row for each."""
        given = clips[:, None] if len(self._shape) == clips.ndim + 1 else clips
        at_once = self._shape[0] if isinstance(self._shape[0], int) else len(given)
        if at_once not in (1, len(given)):
            raise ValueError(f"{self._place}: the file takes {at_once} clips at once; export it for any number, or one")
        parts = [self._run(given[start : start + at_once]) for start in range(0, len(given), at_once)]
        return {
            key: np.concatenate(values) for key, values in zip(self._outputs, zip(*parts, strict=True), strict=True)
        }

    def _run(self, clips: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            found = self._session.run(list(self._outputs.values()), {self._input: clips})
        except Exception as error:  # ONNX Runtime has its own types
            shape = ", ".join(map(str, self._shape))
            raise ValueError(
                f"{self._place}: the file takes ({shape}), not clips of shape {clips.shape}; check input, front_end "
                f"and data.clip_seconds ({_one_line(error)})"
            ) from None
        for (key, name), values in zip(self._outputs.items(), found, strict=True):
            if values.ndim != 2 or len(values) != len(clips):
                raise ValueError(
                    f"{self._place}.{key}: {name!r} has the shape {values.shape} for {len(clips)} clips; a row of "
                    f"{WHAT[key]} for each is expected"
                )
        return [values.astype(np.float32) for values in found]


def _logits_of(outputs: Sequence[str]) -> str:
    """The output that holds the logits where the recipe names none; empty where that is not clear."""
    return "logits" if "logits" in outputs else outputs[0] if len(outputs) == 1 else ""


def _open(path: Path, place: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError(f"{place}.uri: ONNX files need onnxruntime; pip install 'antiphon[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what goes wrong is raised too
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has its own types
        raise ValueError(f"{place}.uri: no ONNX file that can be run ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _parsed(text: str) -> dict[str, Any]:
    """What `antiphon export` has written into the file; empty for another program's."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
