"""The Transformer against timm's, and weights of images, other clip lengths and class counts fitted to it."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.gradients import parameters_without_gradient
from workloads.config.architectures import ViT
from workloads.models.families import adapt_weights, build_backbone


def build_vit(bands: int = 64, frames: int = 96, classes: int = 5, **options) -> nn.Module:
    settings = {"dim": 12, "depth": 2, "heads": 2} | options
    arch = ViT(family="vit", **settings)
    return build_backbone(arch, bands=bands, frames=frames, num_classes=classes)


@pytest.mark.parametrize(
    ("frames", "stride", "grid"),
    [(1024, 10, (12, 101)), (1024, 16, (8, 64)), (512, 10, (12, 50)), (998, 16, (8, 62))],
)
def test_there_is_one_token_per_patch_and_one_for_the_class(frames: int, stride: int, grid: tuple[int, int]) -> None:
    model = build_vit(128, frames, stride=stride).eval()
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 128, frames)).shape == (1, 1 + grid[0] * grid[1], 12)
    assert tuple(model.grid.int().tolist()) == grid


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_equals_timm_where_patches_do_not_overlap(pool: str) -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 16, "in_chans": 1, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 2}
    theirs = VisionTransformer(img_size=(64, 96), global_pool=pool, fc_norm=False, **sizes).eval()
    ours = build_vit(pool=pool).eval()
    state = theirs.state_dict() | {"grid": torch.tensor([4, 6])}
    ours.load_state_dict(state)
    mel_BMF = torch.randn(3, 64, 96)
    torch.testing.assert_close(ours(mel_BMF), theirs(mel_BMF.unsqueeze(1)), rtol=0, atol=1e-6)


def test_overlapping_patches_are_at_the_right_places() -> None:
    """Patch (i, j) of the embedding is the stem applied to the square at (10 i, 10 j)."""
    torch.manual_seed(0)
    model = build_vit(40, 60, stride=10).eval()
    mel_BMF = torch.randn(1, 40, 60)
    patches = model.patch_embed(mel_BMF).reshape(3, 5, 12)
    square = mel_BMF[0, 20:36, 30:46]
    expected = (model.patch_embed.proj.weight[:, 0] * square).sum((1, 2)) + model.patch_embed.proj.bias
    torch.testing.assert_close(patches[2, 3], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_parameter_has_a_gradient(pool: str) -> None:
    torch.manual_seed(0)
    model = build_vit(pool=pool, depth=1, stride=10).train()
    model(torch.randn(2, 64, 96)).square().sum().backward()
    assert parameters_without_gradient(model) == []


def test_dropout_and_drop_path_act_in_training_only() -> None:
    torch.manual_seed(0)
    mel_BMF = torch.randn(8, 64, 96)
    for options in ({"dropout": 0.5}, {"drop_path": 0.5}):
        model = build_vit(**options)
        assert not torch.equal(model.train()(mel_BMF), model(mel_BMF))
        assert torch.equal(model.eval()(mel_BMF), model(mel_BMF))


def test_dropout_follows_positions_and_every_dense_layer_but_qkv() -> None:
    model = build_vit(depth=2, dropout=0.25)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p}
    dense = ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert rates == {"pos_drop": 0.25} | {f"blocks.{i}.{name}": 0.25 for i in range(2) for name in dense}


def test_a_patch_larger_than_the_spectrogram_is_refused() -> None:
    with pytest.raises(ValueError, match="patch = 16: must fit the mel spectrogram of 64 bands x 9 frames"):
        build_vit(64, 9)
    with pytest.raises(ValueError, match=r"stride = 16: makes 1,600,000 patches .* must make at most 1,000,000"):
        build_vit(64, 6_400_000)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_deit_tiny_loads(name: str) -> None:
    state = timm.create_model(name, pretrained=False).state_dict()
    model = build_vit(128, 512, classes=50, dim=192, depth=12, heads=3)
    weights, dropped = adapt_weights(state, model, family="vit")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    head = {"head.weight", "head.bias"}
    extra = {"dist_token", "head_dist.weight", "head_dist.bias"} if "distilled" in name else set()
    assert set(dropped) == head | extra
    assert (set(missing), unexpected) == (head, [])
    assert sum(p.numel() for p in model.blocks.parameters()) == 12 * (12 * 192**2 + 13 * 192) == 5_338_368
    torch.testing.assert_close(model.patch_embed.proj.weight[:, 0], state["patch_embed.proj.weight"].sum(1))
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert torch.equal(model.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])


def test_heads_of_the_same_class_count_are_kept() -> None:
    source = build_vit()
    weights, dropped = adapt_weights(source.state_dict(), build_vit(), family="vit")
    assert dropped == ()
    assert all(torch.equal(weights[name], tensor) for name, tensor in source.state_dict().items())


def positions_with(model: nn.Module, values_RS: Tensor, *, special: float = 9.0) -> dict[str, Tensor]:
    """The model's state with values_RS as its patches' positions in every channel, `special` as the class token's."""
    flat = torch.cat([torch.tensor([special]), values_RS.flatten()])
    return model.state_dict() | {"pos_embed": flat[None, :, None].repeat(1, 1, model.embed_dim)}


def adapted_grid(state: dict[str, Tensor], model: nn.Module) -> Tensor:
    weights, _ = adapt_weights(state, model, family="vit")
    rows, columns = (int(side) for side in model.grid)
    positions = weights["pos_embed"]
    assert torch.equal(positions[0, 0], torch.full((model.embed_dim,), 9.0))
    assert torch.equal(positions[..., 0], positions[..., -1])
    return positions[0, 1:, 0].reshape(rows, columns)


def test_a_longer_time_axis_is_interpolated_linearly() -> None:
    source, target = build_vit(64, 32), build_vit(64, 64)  # 2 columns to 4
    state = positions_with(source, torch.tensor([0.0, 1.0]).repeat(4, 1))
    expected = torch.tensor([0.0, 0.25, 0.75, 1.0]).repeat(4, 1)
    torch.testing.assert_close(adapted_grid(state, target), expected, rtol=0, atol=1e-7)


def test_a_shorter_time_axis_keeps_its_middle() -> None:
    source, target = build_vit(64, 128), build_vit(64, 48)  # 8 columns to 3
    state = positions_with(source, torch.arange(8.0).repeat(4, 1))
    assert torch.equal(adapted_grid(state, target), torch.tensor([3.0, 4.0, 5.0]).repeat(4, 1))


def test_each_axis_is_resized_separately() -> None:
    """As AST does with a square image: the mel axis is cropped, the time axis interpolated."""
    source, target = build_vit(96, 96), build_vit(64, 192)  # 6 x 6 to 4 x 12
    rows, columns = torch.arange(6.0)[:, None] * 100, torch.arange(6.0)[None, :]
    state = positions_with(source, rows + columns)
    del state["grid"]  # weights of square images have no grid
    interpolated = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.25, 4.75, 5.0])
    expected = rows[1:5] + interpolated[None, :]
    torch.testing.assert_close(adapted_grid(state, target), expected, rtol=0, atol=1e-4)


def test_constant_positions_stay_constant() -> None:
    source, target = build_vit(64, 64), build_vit(128, 160)
    grid = adapted_grid(positions_with(source, torch.full((4, 4), 0.5)), target)
    assert torch.equal(grid, torch.full((8, 10), 0.5))


def test_a_stored_grid_has_precedence_over_a_square() -> None:
    """36 positions of 4 x 9 patches are not a 6 x 6 image."""
    source, target = build_vit(64, 144), build_vit(64, 48)  # 9 columns to 3
    state = positions_with(source, torch.arange(9.0).repeat(4, 1))
    assert torch.equal(adapted_grid(state, target), torch.tensor([3.0, 4.0, 5.0]).repeat(4, 1))


def test_misfits_are_named() -> None:
    state = build_vit().state_dict()
    state["odd"] = state.pop("norm.weight")
    with pytest.raises(ValueError, match=r"unknown: odd; missing: norm\.weight; use weights of this"):
        adapt_weights(state, build_vit(), family="vit")
    with pytest.raises(
        ValueError, match=r"wrong shape: cls_token is \(1, 1, 12\), must be \(1, 1, 16\), .* and \d+ more"
    ):
        adapt_weights(build_vit().state_dict(), build_vit(dim=16), family="vit")
    state = {name: tensor for name, tensor in build_vit().state_dict().items() if name != "grid"}
    with pytest.raises(ValueError, match="24 patch positions beside 1 special ones are no square"):
        adapt_weights(state, build_vit(), family="vit")
