"""Quantises an exported ONNX file to int8. Does not depend on taggers, data sets or scores.

Static quantisation by ONNX Runtime: weights per output channel in signed 8 bits, activations in unsigned 8 bits by the
ranges seen on calibration clips. x86 multiplies that pair; signed activations left half of an MN in fp32. A CPU without
VNNI (before 2019) may saturate its sums.

Axes: B clips, M mel bands, F frames.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workloads.runtime.scratch import scratch_folder

FP32_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
INT8_OPERATORS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class OperatorCounts:
    """Numbers of a file's convolutions and matrix products by precision, once ONNX Runtime has optimised the graph."""

    int8: int
    fp32: int


def quantise(path: Path, out: Path, mels: Iterable[NDArray[np.float32]]) -> OperatorCounts:
    """Write the float file at `path` as an int8 one at `out`, with activation ranges from `mels` (each a mel_BMF).

    Operators that ONNX Runtime does not compute in int8 stay in fp32; both are counted.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._remaining: Iterator[NDArray[np.float32]] = iter(mels)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            mel_BMF = next(self._remaining, None)
            return None if mel_BMF is None else {"clips": mel_BMF}

    with scratch_folder() as scratch:
        prepared = scratch / "prepared.onnx"
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
    written, metadata = onnx.load(out), onnx.load(path, load_external_data=False).metadata_props
    del written.metadata_props[:]
    written.metadata_props.extend(metadata)
    onnx.save(written, out)
    return _count_operators(out)


def _count_operators(path: Path) -> OperatorCounts:
    """Counts in the graph as ONNX Runtime optimises it for this CPU, which decides the precision of each operator."""
    import onnx
    import onnxruntime

    with scratch_folder() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(scratch / "optimised.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    kinds = Counter(node.op_type for node in graph.node)
    return OperatorCounts(
        int8=sum(kinds[kind] for kind in INT8_OPERATORS), fp32=sum(kinds[kind] for kind in FP32_OPERATORS)
    )
