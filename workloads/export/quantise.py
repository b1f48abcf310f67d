"""An exported ONNX file in 8-bit whole numbers. Knows no tagger, no data set and no scores.

Static quantisation by ONNX Runtime: weights per output channel in signed 8 bits, activations in unsigned 8 bits by the
ranges seen on calibration clips. That pair is what x86 multiplies; signed activations left half of an MN in fp32. A CPU
without VNNI (before 2019) may saturate its sums.

Axes: B clips, M mel bands, F frames.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEAVY = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")  # what multiplies in fp32
HEAVY_INT8 = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Share:
    """How many of a file's convolutions and matrix products run in int8, once ONNX Runtime has arranged them."""

    int8: int
    fp32: int


def quantise(path: Path, out: Path, mels: Iterable[NDArray[np.float32]]) -> Share:
    """Write the float file at `path` as an int8 one at `out`, its ranges taken from `mels` (mel_BMF, one by one).

    What ONNX Runtime does not compute in int8 stays in fp32 and is counted.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.float32]] = iter(mels)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            mel_BMF = next(self._left, None)
            return None if mel_BMF is None else {"clips": mel_BMF}

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    written, facts = onnx.load(out), onnx.load(path, load_external_data=False).metadata_props
    del written.metadata_props[:]
    written.metadata_props.extend(facts)
    onnx.save(written, out)
    return _share(out)


def _share(path: Path) -> Share:
    """What will really be computed in which precision: of the graph as ONNX Runtime rearranges it for this CPU."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(scratch) / "arranged.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    kinds = Counter(node.op_type for node in graph.node)
    return Share(int8=sum(kinds[kind] for kind in HEAVY_INT8), fp32=sum(kinds[kind] for kind in HEAVY))
