"""What a folder of Hugging Face's hub says of a network beside its weights: config.json, preprocessor_config.json.

A value that a family here cannot have is refused, because the network would say something else. Does not depend on
files or weights.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.config.data import MAX_CLIP_SECONDS, MAX_RATE
from workloads.config.recipe import FRONT_ENDS
from workloads.models.official.ast import BANDS, ROWS, KnownSettings
from workloads.models.official.timm import Described
from workloads.models.patches import MAX_PATCHES
from workloads.runtime.json_files import require_shape

OWN = "antiphon"  # the model_type of folders with code of ours, and the key under which they describe the tagger
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
MOST_NORM_EPS = 1e-5  # transformers' AST has 1e-12, ours 1e-6: the same logits to 1e-4, which larger ones change
Tags = dict[str, str | int] | list[str | int] | None


class TimmConfig(TypedDict, total=False):
    """The part of config.json that timm writes about the weights."""

    input_size: list[int] | None
    num_classes: int | None
    label_names: Tags


class Config(TypedDict, total=False):
    """The values of config.json that are read here; those that are only compared may be any."""

    architecture: str
    architectures: list[str] | None
    model_type: str | None
    problem_type: str | None
    id2label: dict[str, str | int] | None
    time_stride: int
    max_length: int
    clip_seconds: float | None  # antiphon's own, as the next one
    long_clips: Literal["windows", "start"] | None
    hidden_size: int
    layer_norm_eps: float
    num_heads: int | None
    num_classes: int | None
    label_names: Tags
    model_args: dict[str, Any] | None
    pretrained_cfg: TimmConfig | None


class Preprocessor(TypedDict, total=False):
    """The values of preprocessor_config.json that are read here."""

    do_normalize: bool
    mean: float | None
    std: float | None


class HubConfig(NamedTuple):
    """What the folder says: the family, arguments of its `convert`, tags in the order of the classes, labels.

    `marks` is () where the file holds the network's tensors under their own names, as timm's do; None: the family's.
    `long_clips` is what the tagger hears of sounds longer than its clips.
    """

    family: str
    settings: dict[str, Any]
    tags: tuple[str, ...] | None
    labels: Literal["single", "multi"] | None
    marks: tuple[()] | None = None
    long_clips: Literal["windows", "start"] = "windows"


class OwnModel(TypedDict):
    """A recipe's model in such a folder, as far as it is the network."""

    arch: dict[str, Any]
    front_end: dict[str, Any]


class OwnTagger(TypedDict):
    """What config.json of a folder with code of ours says of the tagger."""

    name: str
    model: OwnModel
    clip_seconds: Annotated[float, Interval(gt=0, le=MAX_CLIP_SECONDS)]
    clip_rate: Annotated[int, Interval(gt=0, le=MAX_RATE)]
    long_clips: Literal["windows", "start"]


class OwnConfig(TypedDict):
    """config.json of such a folder."""

    id2label: dict[str, str]
    problem_type: Literal["single_label_classification", "multi_label_classification"]
    antiphon: OwnTagger


def own_state(config: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the tagger in a folder with code of ours (`workloads/export/hub_code.py`), without its origin.

    Raises ValueError, with the place in config.json, where a value is missing or cannot be, and for tags without a name
    of their own.
    """
    require_shape(config, "config.json", OwnConfig)
    own = {key: config[OWN][key] for key in OwnTagger.__annotations__}
    tags = _numbered(config["id2label"], "id2label")
    if len(set(tags)) < len(tags) or not all(tag.strip() for tag in tags):
        raise ValueError(f"config.json: id2label: its {len(tags)} tags must have names, each another one")
    return {"kind": "tagger", **own, "tags": list(tags), "labels": PROBLEMS[config["problem_type"]]}


def read_hub_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> HubConfig:
    """The settings of a hub folder; ValueError, with value and rule, for a network that no family here can be."""
    require_shape(config, "config.json", Config)
    if "architecture" in config:
        return _of_timm(config)
    kind = config.get("model_type")
    if kind == "audio-spectrogram-transformer":
        known = {"known": _of_ast(config, preprocessor)}
        only_start = config.get("long_clips") == "start"
        rule: Literal["windows", "start"] = "start" if only_start else "windows"
        return HubConfig("ast", known, _tags(config), _labels(config), long_clips=rule)
    if kind == "ced":
        _of_ced(config, preprocessor)
        return HubConfig("ced", {"heads": config.get("num_heads")}, _tags(config), _labels(config))
    if kind == "eat" or "EATModel" in (config.get("architectures") or ()):
        _require("config.json", config, EAT_CONFIG)
        return HubConfig("eat", {"heads": config.get("num_heads")}, _tags(config), _labels(config))
    if kind == "wav2vec2":
        return HubConfig("wav2vec2", {}, None, None)
    raise ValueError(
        f"config.json: model_type = {kind!r}: cannot be imported; known are audio-spectrogram-transformer, ced, eat, "
        "wav2vec2, and timm's architecture"
    )


def _of_ast(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> KnownSettings:
    _require("config.json", config, AST_CONFIG)
    require_shape(preprocessor, "preprocessor_config.json", Preprocessor)
    _require("preprocessor_config.json", preprocessor, AST_PREPROCESSOR)
    if not 0 <= config.get("layer_norm_eps", 0.0) <= MOST_NORM_EPS:
        raise ValueError(
            f"config.json: layer_norm_eps = {config['layer_norm_eps']!r}: must be at most {MOST_NORM_EPS:g}; with more "
            "the logits differ here"
        )
    stride, width = config.get("time_stride", 10), config.get("hidden_size", 768)
    _require("config.json", config, {"frequency_stride": stride, "num_attention_heads": AST_HEADS.get(width)})
    if stride not in ROWS:
        raise ValueError(f"config.json: time_stride = {stride!r}: must be one of {', '.join(map(str, ROWS))}")
    frames = config.get("max_length", 1024)
    if not isinstance(frames, int) or not 16 <= frames <= MAX_PATCHES:
        raise ValueError(f"config.json: max_length = {frames!r}: must be a number of frames, 16 or more")
    seconds = config.get("clip_seconds")
    if seconds is not None and not 0 < seconds <= MAX_CLIP_SECONDS:
        raise ValueError(f"config.json: clip_seconds = {seconds!r}: must be above 0, at most {MAX_CLIP_SECONDS}")
    _require("preprocessor_config.json", preprocessor, {"max_length": frames})
    if not preprocessor.get("do_normalize", True):
        return KnownSettings(stride, frames, seconds, 0.0, 1.0)
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    if not math.isfinite(mean or 0) or not math.isfinite(std or 1) or (std is not None and std <= 0):
        raise ValueError(f"preprocessor_config.json: mean = {mean!r}, std = {std!r}: must be finite, std above 0")
    return KnownSettings(
        stride, frames, seconds, mean, None if std is None else 2 * std
    )  # transformers divides by 2 std


def _of_ced(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    _require("config.json", config, CED_CONFIG)
    _require("preprocessor_config.json", preprocessor, CED_PREPROCESSOR)
    if config.get("pooling", "mean") not in CED_POOLING:
        raise ValueError(f"config.json: pooling = {config['pooling']!r}: must be one of {', '.join(CED_POOLING)}")


def _of_timm(config: Mapping[str, Any]) -> HubConfig:
    """timm's hub form. Tags are `label_names`, where the publisher gave them.

    `model_args` say how the network is built, `input_size` what the weights of its name usually hear: it counts where
    they say nothing of channels or size.
    """
    described, args = config.get("pretrained_cfg") or {}, dict(config.get("model_args") or {})
    size = described.get("input_size") or [3, 224, 224]
    num_classes = config.get("num_classes", described.get("num_classes"))
    if len(size) == 3:
        channels, sides = args.get("in_chans", size[0]), args.get("img_size", size[1:])
        size = [channels, *(sides if isinstance(sides, list) else [sides, sides])]
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in (*size, num_classes)):
        raise ValueError(
            f"config.json: input_size = {size!r}, num_classes = {num_classes!r}: must be whole numbers above 0"
        )
    network = Described(config["architecture"], args, (size[0], size[1], size[2]), num_classes)
    names = config.get("label_names") or described.get("label_names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    tags = _numbered(numbered, "label_names") if numbered else None
    return HubConfig("timm", {"described": network}, tags, None, marks=())


def _require(file: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """ValueError where the file says another value than the one that is implemented here; what it omits is usual."""
    for key, value in expected.items():
        if key in found and found[key] is not None and found[key] != value:
            raise ValueError(f"{file}: {key} = {found[key]!r}: this network's is {value!r} here, so its logits differ")


def _tags(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """`id2label` in the order of its numbers; None where the tags have no names of their own."""
    named = config.get("id2label")
    tags = _numbered(named, "id2label") if named else ()
    return None if all(PLACEHOLDER.fullmatch(tag) for tag in tags) else tags


def _numbered(named: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    """The tags of a table from their numbers, in order; ValueError for other keys and for gaps."""
    try:
        by_number = {int(number): str(tag) for number, tag in named.items()}
    except ValueError:
        raise ValueError(f"config.json: {key}: its keys must be the numbers of the classes") from None
    if sorted(by_number) != list(range(len(named))):
        raise ValueError(f"config.json: {key}: must number its {len(named)} tags from 0 without gaps")
    return tuple(by_number[number] for number in range(len(by_number)))


def _labels(config: Mapping[str, Any]) -> Literal["single", "multi"] | None:
    """ValueError where the network was trained to say numbers instead of tags."""
    problem = config.get("problem_type")
    if problem and problem not in PROBLEMS:
        raise ValueError(f"config.json: problem_type = {problem!r}: is no tagger's; those are {', '.join(PROBLEMS)}")
    return PROBLEMS[problem] if problem else None
