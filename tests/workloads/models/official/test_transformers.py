"""Imported networks against the logits of CED's and AST's official code for the same weights and waveform."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.official import keyed_state, waveform
from workloads.config.architectures import AST, CED
from workloads.config.recipe import FrontEnd, Model
from workloads.models.front_end import build_front_end
from workloads.models.official import ast, ced
from workloads.models.official.converted import Converted
from workloads.models.tagger import Tagger

FILES = Path(__file__).parents[3] / "data" / "official"
CLOSE = 2e-5  # all differ by 1e-6; the smallest effect of the exchanges below is 2e-4
AUDIOSET = FrontEnd(kind="kaldi128", frames=1024)
ESC50 = FrontEnd(kind="kaldi128", frames=512, mean=-6.6268077, std=2 * 5.358466)


def official(name: str) -> dict:
    return json.loads((FILES / f"{name}.json").read_text())


def state_of(name: str) -> dict[str, Tensor]:
    return keyed_state(official(name)["shapes"])


def as_tagger(converted: Converted) -> Tagger:
    tags = tuple(f"tag{number}" for number in range(converted.num_classes))
    clip_seconds = converted.clip_seconds
    tagger = Tagger(converted.model, tags=tags, labels="multi", clip_seconds=clip_seconds, clip_rate=16_000)
    tagger.backbone.load_state_dict(converted.weights)
    return tagger.eval()


def largest_difference(tagger: Tagger, name: str, seconds: float) -> float:
    with torch.no_grad():
        logits_BC = tagger.tag(waveform(seconds, 16_000))
    return (logits_BC[:, :20] - torch.tensor(official(name)["logits"])).abs().max().item()


@pytest.mark.parametrize(
    ("name", "size", "seconds"),
    [
        ("ced_tiny_10s", "tiny", 10),
        ("ced_mini_10s", "mini", 10),
        ("ced_tiny_3s", "tiny", 3),
        ("ced_tiny_14s", "tiny", 14),  # two windows, the second one padded
    ],
)
def test_ced_equals_the_official_code(name: str, size: str, seconds: float) -> None:
    converted = ced.convert(state_of(name))
    assert converted.model == Model(arch=CED(family="ced", size=size), front_end=FrontEnd(kind="ced64"))
    assert (converted.num_classes, converted.clip_seconds, converted.dropped) == (527, 10.0, ())
    assert largest_difference(as_tagger(converted), name, seconds) < CLOSE


@pytest.mark.parametrize(
    ("name", "size", "stride", "front_end", "classes", "seconds"),
    [
        ("ast_tiny_10", "tiny", 10, AUDIOSET, 527, 10.0),
        ("ast_tiny_16", "tiny", 16, AUDIOSET, 527, 10.0),
        ("ast_base_16", "base", 16, AUDIOSET, 527, 10.0),
        ("ast_tiny_esc50", "tiny", 10, ESC50, 50, 5.0),
    ],
)
def test_ast_equals_the_official_code(
    name: str, size: str, stride: int, front_end: FrontEnd, classes: int, seconds: float
) -> None:
    converted = ast.convert(state_of(name))
    assert converted.model == Model(arch=AST(family="ast", size=size, stride=stride), front_end=front_end)
    assert (converted.num_classes, converted.clip_seconds) == (classes, seconds)
    assert converted.dropped == ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias")
    assert largest_difference(as_tagger(converted), name, seconds) < CLOSE


def exchange(one: str, other: str) -> Callable[[dict[str, Tensor]], None]:
    """Exchanges all tensors whose names start with `one` with those that start with `other`."""

    def change(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if name.startswith(one)]:
            partner = other + name.removeprefix(one)
            weights[name], weights[partner] = weights[partner], weights[name]

    return change


def exchange_queries_and_keys(weights: dict[str, Tensor]) -> None:
    query, key, value = weights["blocks.6.attn.qkv.weight"].chunk(3)
    weights["blocks.6.attn.qkv.weight"] = torch.cat([key, query, value])


def reverse_time(weights: dict[str, Tensor]) -> None:
    weights["time"] = weights["time"].flip(3)


def reverse_bands(weights: dict[str, Tensor]) -> None:
    weights["bands"] = weights["bands"].flip(2)


def shift_positions(weights: dict[str, Tensor]) -> None:
    positions = weights["pos_embed"]
    weights["pos_embed"] = torch.cat([positions[:, :2], positions[:, 2:].roll(1, dims=1)], dim=1)


def exchange_special_positions(weights: dict[str, Tensor]) -> None:
    positions = weights["pos_embed"]
    weights["pos_embed"] = torch.cat([positions[:, [1, 0]], positions[:, 2:]], dim=1)


COMMON = [
    exchange("blocks.3.", "blocks.4."),
    exchange("blocks.10.", "blocks.11."),
    exchange("blocks.5.norm1.", "blocks.5.norm2."),
    exchange_queries_and_keys,
]


@pytest.mark.parametrize(
    ("name", "convert", "changes"),
    [
        ("ced_tiny_10s", ced.convert, [*COMMON, reverse_time, reverse_bands]),
        (
            "ast_tiny_16",
            ast.convert,
            [*COMMON, shift_positions, exchange_special_positions, exchange("cls_token", "dist_token")],
        ),
    ],
)
def test_a_wrong_conversion_would_be_detected(name: str, convert: Callable[..., Converted], changes: list) -> None:
    converted = convert(state_of(name))
    tagger = as_tagger(converted)
    for change in changes:
        weights = dict(converted.weights)
        change(weights)
        tagger.backbone.load_state_dict(weights)
        assert largest_difference(tagger, name, 10) > 5 * CLOSE


def ced_constants() -> dict[str, Tensor]:
    mel = build_front_end("ced64", clip_rate=16_000).mel
    return {
        "front_end.0.spectrogram.window": mel.spectrogram.window,
        "front_end.0.mel_scale.fb": mel.mel_scale.fb,
    }


def test_ceds_own_front_end_is_checked_and_dropped() -> None:
    """Window and filterbank have the names and shapes under which the official code stores them."""
    state, constants = state_of("ced_tiny_3s"), ced_constants()
    assert ced.convert(constants | state).dropped == tuple(constants)
    for name, tensor in constants.items():
        with pytest.raises(ValueError, match=f"{re.escape(name)} .*: not CED's usual front end"):
            ced.convert(state | {name: tensor * 1.01})
        with pytest.raises(ValueError, match=f"{re.escape(name)} .*: not CED's usual front end"):
            ced.convert(state | {name: tensor[:-1]})


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_published_weights_without_a_head_initialise_the_rest() -> None:
    """Such as weights trained without labels: the head keeps its random initial values."""
    state = state_of("ced_tiny_3s")
    imported = ced.convert(state)
    tagger = as_tagger(imported)
    drawn = {name: tensor.clone() for name, tensor in tagger.backbone.state_dict().items()}
    for tensor in tagger.backbone.state_dict().values():
        tensor.zero_()
    tagger.load_initial({name: tensor for name, tensor in state.items() if not name.startswith("outputlayer.")})
    assert set(tagger.newly_initialised) == {name for name in drawn if name.startswith("head.")}
    for name, tensor in tagger.backbone.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name.startswith("head.") else drawn[name]), name


def test_misfits_of_ced_are_named() -> None:
    state = state_of("ced_tiny_3s")
    for name, problem in (
        ("outputlayer.1.weight", "missing: head.1.weight"),
        ("outputlayer.0.bias", r"missing: head\.0\.bias"),
        ("blocks.7.mlp.fc1.bias", r"missing: blocks\.7\.mlp\.fc1\.bias"),
        ("patch_embed.proj.weight", "missing or has not four axes"),
    ):
        with pytest.raises(ValueError, match=problem):
            ced.convert(without(state, name))
    with pytest.raises(ValueError, match="unknown: cls_token"):
        ced.convert(state | {"cls_token": torch.zeros(1, 1, 192)})
    with pytest.raises(ValueError, match=r"time is \(1, 192, 1, 71\), must be \(1, 192, 1, 63\)"):
        ced.convert(state | {"time_pos_embed": torch.zeros(1, 192, 1, 71)})
    with pytest.raises(ValueError, match=r"is 100 wide: CED's networks are .*192: 'tiny'"):
        ced.convert(state | {"patch_embed.proj.weight": torch.zeros(100, 1, 16, 16)})
    with pytest.raises(ValueError, match="two tensors are named for the same part"):
        ced.convert(state | {"norm_mel.bias": torch.zeros(64)})


def ast_state(positions: int, classes: int = 527) -> dict[str, Tensor]:
    state = without(state_of("ast_tiny_16"), "mlp_head.1.weight", "mlp_head.1.bias")
    head = {"mlp_head.1.weight": torch.zeros(classes, 192), "mlp_head.1.bias": torch.zeros(classes)}
    return state | head | {"v.pos_embed": torch.zeros(1, positions + 2, 192)}


@pytest.mark.parametrize(
    ("positions", "stride", "frames", "seconds"),
    [
        (1212, 10, 1024, 10.0),
        (512, 16, 1024, 10.0),
        (600, 10, 512, 5.0),  # also 8 x 75 at stride 16, but of 1200 frames, which are unusual
        (256, 16, 512, 5.0),
        (144, 10, 128, 1.0),  # Speech Commands
        (12 * 203, 10, 2036, 20.0),  # no usual number: the fewest frames that make 203 columns
        (8 * 4, 16, 64, 0.66),  # of a second more than a third would be cut off
        (8 * 7, 16, 112, 1.0),
        (8 * 16, 16, 256, 2.58),
    ],
)
def test_positions_give_asts_stride_and_length(positions: int, stride: int, frames: int, seconds: float) -> None:
    converted = ast.convert(ast_state(positions))
    assert (converted.model.arch.stride, converted.model.front_end.frames) == (stride, frames)
    assert converted.clip_seconds == seconds
    rows, columns = converted.weights["grid"].tolist()
    assert (rows * columns, rows) == (positions, {10: 12, 16: 8}[stride])


@pytest.mark.parametrize("positions", [10 * 42, 9 * 36, 8 * 101, 10 * 85, 9 * 73])
def test_positions_of_other_strides_are_refused(positions: int) -> None:
    """Strides 12 and 14 at 512 frames, 16 by 10 at 1024; and of the published networks of stride 12 and 14."""
    with pytest.raises(ValueError, match=rf"v\.pos_embed: {positions} positions of patches are those of strides 1"):
        ast.convert(ast_state(positions))


@pytest.mark.parametrize(("positions", "word"), [(853, "neither"), (24 * 61, "both"), (0, "neither")])
def test_positions_that_fit_no_stride_or_two_are_refused(positions: int, word: str) -> None:
    with pytest.raises(ValueError, match=rf"v\.pos_embed: {positions} positions of patches are {word} 12 rows"):
        ast.convert(ast_state(positions))


def test_speech_commands_has_its_recipes_normalisation() -> None:
    front_end = ast.convert(ast_state(144, classes=35)).model.front_end
    assert (front_end.mean, front_end.std) == (-6.845978, 2 * 5.5654526)


def test_misfits_of_ast_are_named() -> None:
    state = state_of("ast_tiny_16")
    for name, problem in (
        ("v.norm.bias", r"missing: norm\.bias"),
        ("mlp_head.1.weight", r"missing: mlp_head\.1\.weight"),
        ("v.pos_embed", r"v\.pos_embed is missing or has not three axes"),
    ):
        with pytest.raises(ValueError, match=problem):
            ast.convert(without(state, name))
    with pytest.raises(ValueError, match=r"unknown: blocks\.12\.norm1\.weight"):
        ast.convert(state | {"v.blocks.12.norm1.weight": torch.zeros(192)})
    with pytest.raises(ValueError, match=r"norm\.bias is \(384,\), must be \(192,\)"):
        ast.convert(state | {"v.norm.bias": torch.zeros(384)})
    with pytest.raises(ValueError, match=r"is 100 wide: AST's networks are .*192: 'tiny'"):
        ast.convert(state | {"v.pos_embed": torch.zeros(1, 514, 100)})
    with pytest.raises(ValueError, match="two tensors are named for the same part"):
        ast.convert(state | {"norm.bias": torch.zeros(192)})
