"""CED, AST and EfficientNet: sizes, shapes, windows, weights of images; and attention maps of Transformers.

Comparison with the official code: official/test_transformers.py. ViT: test_vit.py.
"""

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.attention import attention_maps
from tests.gradients import parameters_without_gradient
from workloads.config.architectures import AST, CED, MN, Arch, EfficientNet, ViT
from workloads.models.backbone import Backbone
from workloads.models.families import adapt_weights, build_backbone

TINY_VIT = ViT(family="vit", dim=12, depth=2, heads=2)
TINY_AST = AST(family="ast", size="tiny", stride=16)
TINY_CED = CED(family="ced", size="tiny")
SMALL_MEL = (64, 96)  # bands and frames


def build(arch: Arch, bands: int, frames: int, classes: int = 5) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(arch, bands=bands, frames=frames, num_classes=classes).eval()


def spectra(clips: int, bands: int, frames: int) -> Tensor:
    return torch.randn(clips, bands, frames, generator=torch.Generator().manual_seed(1))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "dim", "params", "macs"),
    [("tiny", 192, 5.50, 1.6), ("mini", 256, 9.70, 2.7), ("small", 384, 21.6, 5.9), ("base", 768, 85.7, 22.3)],
)
def test_ceds_sizes_match_the_table(size: str, dim: int, params: float, macs: float) -> None:
    """Of 10 s in 1001 frames: 4 x 62 patches (reference/ced.md section 6)."""
    model = build(CED(family="ced", size=size), 64, 1001, classes=527).to("meta")  # shapes without data
    assert count(model) / 1e6 == pytest.approx(params, rel=0.005)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 64, 1001, device="meta"))
    tokens = 4 * 62
    formula = tokens * 256 * dim + 12 * (12 * tokens * dim**2 + 2 * tokens**2 * dim) + 527 * dim
    assert counter.get_total_flops() / 2 == pytest.approx(formula, rel=0.01)
    assert formula / 1e9 == pytest.approx(macs, rel=0.015)  # the table is rounded to two or three digits


@pytest.mark.parametrize(("stride", "tokens"), [(10, 1212), (16, 512)])
@pytest.mark.parametrize(("size", "dim"), [("tiny", 192), ("small", 384), ("base", 768)])
def test_asts_sizes_follow_from_its_width(size: str, dim: int, stride: int, tokens: int) -> None:
    with torch.device("meta"):
        model = build(AST(family="ast", size=size, stride=stride), 128, 1024, classes=527)
        assert model.forward_features(torch.zeros(1, 128, 1024)).shape == (1, 2 + tokens, dim)
    stem, special, norms, head = 257 * dim, 2 * dim, 4 * dim, 527 * (dim + 1)
    blocks = 12 * (12 * dim**2 + 13 * dim)
    assert count(model) == stem + special + (2 + tokens) * dim + blocks + norms + head


@pytest.mark.parametrize(("variant", "params"), [("b0", 4.682), ("b2", 8.443)])
def test_efficientnets_sizes(variant: str, params: float) -> None:
    with torch.device("meta"):
        model = build(EfficientNet(family="efficientnet", variant=variant), 128, 1000, classes=527)
    assert count(model) / 1e6 == pytest.approx(params, abs=0.0005)


@pytest.mark.parametrize(
    ("arch", "mel", "embedding", "steps"),
    [
        (TINY_CED, (64, 301), 192, 18),
        (TINY_CED, (64, 1012), 192, 63),
        (TINY_CED, (64, 1401), 192, 63 + 25),  # the second window's last patches hold padding only
        (TINY_AST, (64, 96), 192, 6),
        (AST(family="ast", size="tiny", stride=10), (64, 96), 192, 9),
        (EfficientNet(family="efficientnet"), (64, 96), 1280, 3),
        (EfficientNet(family="efficientnet", variant="b2"), (128, 300), 1408, 10),
    ],
)
def test_logits_embedding_and_sequence_have_their_shapes(
    arch: Arch, mel: tuple[int, int], embedding: int, steps: int
) -> None:
    with torch.no_grad():
        outputs = build(arch, *mel).outputs(spectra(2, *mel))
    assert outputs.logits_BC.shape == (2, 5)
    assert outputs.embedding_BD.shape == (2, embedding)
    assert outputs.sequence_BPD.shape == (2, steps, embedding)


@pytest.mark.parametrize("arch", [TINY_CED, TINY_AST])
def test_every_parameter_has_a_gradient(arch: Arch) -> None:
    model = build(arch, 64, 1012 if arch.family == "ced" else 96).train()  # all of CED's positions in time
    model(spectra(2, 64, 1012 if arch.family == "ced" else 96)).square().sum().backward()
    assert parameters_without_gradient(model) == []


@pytest.mark.parametrize("arch", [TINY_CED, TINY_AST, EfficientNet(family="efficientnet")])
def test_clips_do_not_influence_each_other(arch: Arch) -> None:
    model, mel_BMF = build(arch, *SMALL_MEL), spectra(3, *SMALL_MEL)
    with torch.no_grad():
        torch.testing.assert_close(model(mel_BMF)[1:2], model(mel_BMF[1:2]), rtol=0, atol=1e-5)


def with_statistics(model: Backbone) -> Backbone:
    """The model with a batch norm that is not the identity: other means and deviations in every band."""
    model.norm_mel.running_mean.copy_(torch.linspace(-30, 10, 64))
    model.norm_mel.running_var.copy_(torch.linspace(50, 200, 64))
    return model


def test_ced_processes_a_long_clip_window_by_window() -> None:
    """The mean of both windows' logits, where the second is padded with zeros after the batch norm."""
    model, mel_BMF = with_statistics(build(TINY_CED, 64, 1401)), 10 * spectra(2, 64, 1401)
    with torch.no_grad():
        whole = model.outputs(mel_BMF)
        normed_BMF = model.norm_mel(mel_BMF)
        model.norm_mel = nn.Identity()
        windows = [normed_BMF[..., :1012], F.pad(normed_BMF[..., 1012:], (0, 2 * 1012 - 1401))]
        first, second = (model.outputs(window_BMF) for window_BMF in windows)
    torch.testing.assert_close(whole.logits_BC, (first.logits_BC + second.logits_BC) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.embedding_BD, (first.embedding_BD + second.embedding_BD) / 2, rtol=0, atol=1e-5)
    sequence_BPD = torch.cat([first.sequence_BPD, second.sequence_BPD[:, :25]], dim=1)
    torch.testing.assert_close(whole.sequence_BPD, sequence_BPD, rtol=0, atol=1e-5)


def test_ced_processes_two_windows_that_are_filled_exactly() -> None:
    """The official code omits the second one."""
    model, mel_BMF = with_statistics(build(TINY_CED, 64, 2024)), 10 * spectra(1, 64, 2024)
    with torch.no_grad():
        first, second = (model(half_BMF) for half_BMF in mel_BMF.split(1012, dim=2))
        torch.testing.assert_close(model(mel_BMF), (first + second) / 2, rtol=0, atol=1e-5)
    assert (first - second).abs().max() > 0.01


def square_deit(values: list[list[float]]) -> dict[str, Tensor]:
    """A distilled DeiT of 1000 classes over RGB squares, whose positions hold `values`, 7 (class) and 9 (distillation).

    One number per position, the same in all features.
    """
    torch.manual_seed(0)
    side = 16 * len(values)
    state = VisionTransformerDistilled(img_size=side, embed_dim=192, num_heads=3, num_classes=1000).state_dict()
    numbers = torch.tensor([7.0, 9.0, *(value for row in values for value in row)])
    return state | {"pos_embed": numbers[None, :, None].repeat(1, 1, 192)}


@pytest.mark.parametrize(
    ("values", "bands", "frames", "expected"),
    [
        ([[0, 1], [10, 11]], 16, 64, [10, 10.25, 10.75, 11]),  # mel is cropped to its middle, time interpolated
        ([[0, 1], [10, 11]], 64, 16, [1, 3.5, 8.5, 11]),  # the reverse
        ([[0, 1], [10, 11]], 32, 32, [0, 1, 10, 11]),  # both fit
        ([[0, 1, 2], [10, 11, 12], [20, 21, 22]], 32, 32, [0, 1, 10, 11]),  # starts at 3 // 2 - 2 // 2 = 0
    ],
)
def test_ast_starts_from_images(values: list[list[float]], bands: int, frames: int, expected: list[float]) -> None:
    state, model = square_deit(values), build(TINY_AST, bands, frames)
    weights, dropped = adapt_weights(state, model, family="ast")
    of_images = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert set(dropped) == of_images | {f"mlp_head.{layer}.{part}" for layer in "01" for part in ("weight", "bias")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.startswith("mlp_head.") for name in missing)
    numbers = model.pos_embed[0].detach()
    torch.testing.assert_close(numbers[:, 0], torch.tensor([7.0, 9.0, *expected]), rtol=0, atol=1e-6)
    assert torch.equal(numbers[:, 0], numbers[:, 191])
    torch.testing.assert_close(model.patch_embed.proj.weight[:, 0], state["patch_embed.proj.weight"].sum(1))
    kept = [name for name in state if name not in dropped and name not in ("pos_embed", "patch_embed.proj.weight")]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in kept)


def test_ast_starts_from_another_clip_length_with_its_head() -> None:
    source, model = build(TINY_AST, 32, 128), build(TINY_AST, 32, 64)
    numbers = torch.tensor([7.0, 9.0, *range(8), *range(10, 18)])
    state = source.state_dict() | {"pos_embed": numbers[None, :, None].repeat(1, 1, 192)}
    weights, dropped = adapt_weights(state, model, family="ast")
    assert dropped == ()
    assert weights["pos_embed"][0, :, 0].tolist() == [7, 9, 2, 3, 4, 5, 12, 13, 14, 15]
    assert torch.equal(weights["mlp_head.1.weight"], state["mlp_head.1.weight"])
    _, dropped = adapt_weights(state, build(TINY_AST, 32, 64, classes=6), family="ast")
    assert {"mlp_head.1.weight", "mlp_head.1.bias"} <= set(dropped)


TRANSFORMERS = [TINY_VIT, TINY_AST, TINY_CED]


@pytest.mark.parametrize(("arch", "blocks", "tokens"), [(TINY_VIT, 2, 25), (TINY_AST, 12, 26), (TINY_CED, 12, 24)])
def test_every_block_gives_a_map_whose_rows_sum_to_one(arch: Arch, blocks: int, tokens: int) -> None:
    maps = attention_maps(build(arch, *SMALL_MEL), spectra(2, *SMALL_MEL))
    assert [tuple(attention_BLL.shape) for attention_BLL in maps] == [(2, tokens, tokens)] * blocks
    for attention_BLL in maps:
        assert attention_BLL.min() >= 0
        torch.testing.assert_close(attention_BLL.sum(2), torch.ones(2, tokens), rtol=0, atol=1e-5)


def test_the_map_is_the_mean_over_heads_of_queries_times_keys() -> None:
    model, mel_BMF = build(TINY_VIT, *SMALL_MEL), spectra(2, *SMALL_MEL)
    nn.init.normal_(model.blocks[0].attn.qkv.weight)  # with initial weights, attention is almost uniform
    first, _ = attention_maps(model, mel_BMF)
    with torch.no_grad():
        normed_BLD = model.blocks[0].norm1(model._pos_embed(model.patch_embed(mel_BMF)))
        qkv = model.blocks[0].attn.qkv(normed_BLD).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        expected_BHLL = (qkv[0] @ qkv[1].transpose(2, 3) / 6**0.5).softmax(3)
    assert first.std() > 0.01
    torch.testing.assert_close(first, expected_BHLL.mean(1), rtol=0, atol=1e-6)


def attention_layers(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_explicit_attention_equals_the_fused_one(arch: Arch) -> None:
    model, mel_BMF = build(arch, *SMALL_MEL), spectra(2, *SMALL_MEL)
    assert all(layer.fused_attn for layer in attention_layers(model))
    with torch.no_grad():
        fused = model(mel_BMF)
        for layer in attention_layers(model):
            layer.fused_attn = False
        torch.testing.assert_close(model(mel_BMF), fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_computing_maps_leaves_the_model_unchanged(arch: Arch) -> None:
    model, mel_BMF = build(arch, *SMALL_MEL), spectra(2, *SMALL_MEL)
    with torch.no_grad():
        before = model(mel_BMF)
    attention_maps(model, mel_BMF)
    with pytest.raises((RuntimeError, AssertionError)):
        attention_maps(model, mel_BMF[:, :40])  # too few bands: fails in the middle
    layers = attention_layers(model)
    layers[0].fused_attn = False  # a layer that was not fused before must stay so
    attention_maps(model, mel_BMF)
    assert [layer.fused_attn for layer in layers] == [False] + [True] * (len(layers) - 1)
    assert not any(layer.attn_drop._forward_hooks for layer in layers)
    layers[0].fused_attn = True
    with torch.no_grad():
        assert torch.equal(model(mel_BMF), before)


def test_flags_are_restored_also_when_a_late_block_fails() -> None:
    model, mel_BMF = build(TINY_VIT, *SMALL_MEL), spectra(1, *SMALL_MEL)

    def fail(*_: object) -> None:
        raise RuntimeError("in the last block")

    handle = model.blocks[-1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the last block"):
        attention_maps(model, mel_BMF)
    handle.remove()
    assert all(layer.fused_attn for layer in attention_layers(model))
    assert not any(layer.attn_drop._forward_hooks for layer in attention_layers(model))


@pytest.mark.parametrize("arch", [EfficientNet(family="efficientnet"), MN(family="mn", width=0.1)])
def test_a_network_without_attention_is_refused(arch: Arch) -> None:
    with pytest.raises(ValueError, match="has no attention layers; use a Transformer"):
        attention_maps(build(arch, *SMALL_MEL), spectra(1, *SMALL_MEL))
