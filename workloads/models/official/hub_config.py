"""What a folder of Hugging Face's hub says of a network beside its weights: config.json, preprocessor_config.json.

A value that a family here cannot have is refused, because the network would say something else. Does not depend on
files or weights.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from workloads.config.recipe import FRONT_ENDS
from workloads.models.official.ast import BANDS, ROWS, KnownSettings
from workloads.models.official.timm import Described
from workloads.models.patches import MAX_PATCHES

PLACEHOLDER = re.compile(r"LABEL_\d+")  # transformers' tags where nobody named them
PROBLEMS: dict[str, Literal["single", "multi"]] = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
}
AST_CONFIG = {"patch_size": 16, "num_mel_bins": BANDS, "num_hidden_layers": 12, "hidden_act": "gelu", "qkv_bias": True}
AST_PREPROCESSOR = {"sampling_rate": FRONT_ENDS["kaldi128"], "num_mel_bins": BANDS, "padding_value": 0.0}
AST_HEADS = {192: 3, 384: 6, 768: 12}
CED_CONFIG = {
    **{"patch_size": 16, "patch_stride": 16, "target_length": 1012, "depth": 12, "mlp_ratio": 4.0, "qkv_bias": True},
    **{"n_mels": 64, "n_fft": 512, "win_size": 512, "hop_size": 160, "f_min": 0, "f_max": 8000, "center": True},
}
CED_PREPROCESSOR = {
    **{"sampling_rate": FRONT_ENDS["ced64"], "feature_size": 64, "n_fft": 512, "win_size": 512, "hop_size": 160},
    **{"f_min": 0, "center": True},
}
EAT_CONFIG = {
    **{"patch_size": 16, "stride": 16, "in_chans": 1, "mel_bins": 128, "mlp_ratio": 4.0, "qkv_bias": True},
    **{"layer_norm_first": False, "norm_affine": True, "fixed_positions": True, "model_variant": "finetune"},
}
CED_POOLING = ("mean", "logit")  # the mean over all patches; whether a sigmoid follows does not matter


class HubConfig(NamedTuple):
    """What the folder says: the family, arguments of its `convert`, tags in the order of the classes, labels.

    `marks` is () where the file holds the network's tensors under their own names, as timm's do; None: the family's.
    """

    family: str
    settings: dict[str, Any]
    tags: tuple[str, ...] | None
    labels: Literal["single", "multi"] | None
    marks: tuple[()] | None = None


def read_hub_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> HubConfig:
    """The settings of a hub folder; ValueError, with value and rule, for a network that no family here can be."""
    if "architecture" in config:
        return _of_timm(config)
    kind = config.get("model_type")
    if kind == "audio-spectrogram-transformer":
        return HubConfig("ast", {"known": _of_ast(config, preprocessor)}, _tags(config), _labels(config))
    if kind == "ced":
        _of_ced(config, preprocessor)
        return HubConfig("ced", {}, _tags(config), _labels(config))
    if kind == "eat" or "EATModel" in (config.get("architectures") or ()):
        _require("config.json", config, EAT_CONFIG)
        return HubConfig("eat", {}, _tags(config), _labels(config))
    if kind == "wav2vec2":
        return HubConfig("wav2vec2", {}, None, None)
    raise ValueError(
        f"config.json: model_type = {kind!r}: cannot be imported; known are audio-spectrogram-transformer, ced, eat, "
        "wav2vec2, and timm's architecture"
    )


def _of_ast(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> KnownSettings:
    _require("config.json", config, AST_CONFIG)
    _require("preprocessor_config.json", preprocessor, AST_PREPROCESSOR)
    stride, width = config.get("time_stride", 10), config.get("hidden_size", 768)
    _require("config.json", config, {"frequency_stride": stride, "num_attention_heads": AST_HEADS.get(width)})
    if stride not in ROWS:
        raise ValueError(f"config.json: time_stride = {stride!r}: must be one of {', '.join(map(str, ROWS))}")
    frames = config.get("max_length", 1024)
    if not isinstance(frames, int) or not 16 <= frames <= MAX_PATCHES:
        raise ValueError(f"config.json: max_length = {frames!r}: must be a number of frames, 16 or more")
    _require("preprocessor_config.json", preprocessor, {"max_length": frames})
    if not preprocessor.get("do_normalize", True):
        return KnownSettings(stride, frames, 0.0, 1.0)
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    if any(value is not None and not isinstance(value, int | float) for value in (mean, std)):
        raise ValueError(f"preprocessor_config.json: mean = {mean!r}, std = {std!r}: must be numbers")
    return KnownSettings(stride, frames, mean, None if std is None else 2 * std)  # transformers divides by 2 std


def _of_ced(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    _require("config.json", config, CED_CONFIG)
    _require("preprocessor_config.json", preprocessor, CED_PREPROCESSOR)
    if config.get("pooling", "mean") not in CED_POOLING:
        raise ValueError(f"config.json: pooling = {config['pooling']!r}: must be one of {', '.join(CED_POOLING)}")


def _of_timm(config: Mapping[str, Any]) -> HubConfig:
    """timm's hub form. Tags are `label_names`, where the publisher gave them."""
    described = config.get("pretrained_cfg") or {}
    size = described.get("input_size") or (3, 224, 224)
    num_classes = config.get("num_classes", described.get("num_classes"))
    if len(size) != 3 or not all(isinstance(side, int) for side in (*size, num_classes)):
        raise ValueError(f"config.json: input_size = {size!r}, num_classes = {num_classes!r}: must be whole numbers")
    network = Described(str(config["architecture"]), dict(config.get("model_args") or {}), tuple(size), num_classes)
    names = config.get("label_names") or described.get("label_names")
    tags = tuple(map(str, names)) if isinstance(names, list) and len(names) == num_classes else None
    return HubConfig("timm", {"described": network}, tags, None, marks=())


def _require(file: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """ValueError where the file says another value than the one that is implemented here; what it omits is usual."""
    for key, value in expected.items():
        if key in found and found[key] is not None and found[key] != value:
            raise ValueError(f"{file}: {key} = {found[key]!r}: this network's is {value!r} here, so its logits differ")


def _tags(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label` in the order of its numbers; None where the tags have no names of their own."""
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not named:
        return None
    try:
        by_number = {int(number): str(tag) for number, tag in named.items()}
    except ValueError:
        raise ValueError("config.json: id2label: its keys must be the numbers of the classes") from None
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"config.json: id2label: must number its {len(by_number)} tags from 0 without gaps")
    tags = tuple(by_number[number] for number in range(len(by_number)))
    return None if all(PLACEHOLDER.fullmatch(tag) for tag in tags) else tags


def _labels(config: Mapping[str, Any]) -> Literal["single", "multi"] | None:
    return PROBLEMS.get(config.get("problem_type") or "")
