"""timm's networks by name: their numbers are timm's own, whatever the order of their axes; weights of images fit."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from orchestrator.recipes.loader import load_recipe
from tests.trained_runs import trained
from workloads.config.architectures import Arch, Timm, ViT
from workloads.config.recipe import FrontEnd, Model, restore
from workloads.models.buildable import require_buildable
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.size import model_size
from workloads.models.timm_features import Features

BANDS, FRAMES = 64, 128


def arch(name: str, **options: Any) -> Timm:
    return Timm(family="timm", name=name, **options)


def build(name: str, *, bands: int = BANDS, frames: int = FRAMES, classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_backbone(arch(name, **options), bands=bands, frames=frames, num_classes=classes).eval()


def drawn(net: Any) -> Any:
    """With first weights that are zero or one, many parts of a network would not matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    return net


def mels(bands: int = BANDS, frames: int = FRAMES) -> Tensor:
    return torch.randn(2, bands, frames, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "width", "grid"),
    [
        ("resnet10t", 512, (2, 4)),
        ("convnext_atto", 320, (2, 4)),
        ("mobilenetv4_conv_small_050", 1280, (2, 4)),  # a convolution between its map and its classifier
        ("vit_tiny_patch16_224", 192, (4, 8)),
        ("deit_tiny_distilled_patch16_224", 192, (4, 8)),  # two classifiers
        ("swin_s3_tiny_224", 768, (2, 4)),  # channels last
        ("xcit_nano_12_p16_224", 128, (4, 8)),  # positions are computed
        ("mixer_s32_224", 512, (2, 4)),
        ("levit_128s", 384, (1, 2)),
    ],
)
def test_outputs_are_timm_s_own_and_keep_the_axis_of_time(name: str, width: int, grid: tuple[int, int]) -> None:
    model, mel_BMF = drawn(build(name)), mels()
    with torch.no_grad():
        found, expected_BC = model.outputs(mel_BMF), model.net(mel_BMF.unsqueeze(1))
        assert torch.equal(model(mel_BMF), found.logits_BC)
    torch.testing.assert_close(found.logits_BC, expected_BC, rtol=1e-6, atol=1e-6)
    assert found.logits_BC.std() > 0
    assert found.embedding_BD.shape == (2, width)
    assert found.sequence_BPD.shape[:2] == (2, grid[1])
    assert found.sequence_BPD.std(1).mean() > 0, "steps differ"


@pytest.mark.parametrize("axes", ["BDRS", "BRSD", "BLD"])
def test_the_sequence_is_the_mean_over_mel_of_each_column(axes: Any) -> None:
    map_BDRS = torch.randn(2, 5, 3, 4)
    channels_last = map_BDRS.permute(0, 2, 3, 1)
    tokens = torch.cat([torch.full((2, 2, 5), 9.0), channels_last.flatten(1, 2)], dim=1)
    features = {"BDRS": map_BDRS, "BRSD": channels_last, "BLD": tokens}[axes]
    found_BPD = Features(axes, 2, (3, 4)).over_time(features)
    torch.testing.assert_close(found_BPD, map_BDRS.mean(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_steps_are_where_their_frames_are(name: str) -> None:
    """The centre of what a step's gradient reaches; attention is cut off, since it reaches everything."""
    model = build(name, frames=512)
    if "vit" in name:
        model.net.blocks = torch.nn.Identity()
    mel_BMF = mels(frames=512).requires_grad_()
    sequence_BPD = model.outputs(mel_BMF).sequence_BPD
    steps = sequence_BPD.shape[1]
    first, length = model.time_steps(512, steps)
    (gradient,) = torch.autograd.grad(sequence_BPD[:, steps // 2].square().sum(), mel_BMF)
    weights_F = gradient.abs().sum((0, 1))
    centre = float((weights_F * torch.arange(512)).sum() / weights_F.sum())
    expected = first + (steps // 2 + 0.5) * length - 0.5
    assert centre == pytest.approx(expected, abs=length / 4)


def test_arguments_reach_timm_and_unknown_ones_are_named() -> None:
    shallow, deep = (build("vit_tiny_patch16_224", args={"depth": depth}) for depth in (1, 3))
    assert (len(shallow.net.blocks), len(deep.net.blocks)) == (1, 3), "one does not stand for the other"
    restored = restore(Arch, {"family": "timm", "name": "convnext_atto", "args": {"depths": [1, 1, 1, 1]}})
    assert restored == arch("convnext_atto", args={"depths": (1, 1, 1, 1)})
    for options, message in (
        ({"args": {"depht": 2}}, r"arch\.args\.depht: timm's vit_tiny_patch16_224: .*unexpected keyword"),
        ({"args": {"depht": 0}}, r"arch\.args\.depht: timm's vit_tiny_patch16_224: .*unexpected keyword"),
        ({"args": {"se_ratio": False}}, r"arch\.args\.se_ratio: timm's vit_tiny_patch16_224: .*unexpected keyword"),
        (
            {"args": {"num_heads": 0}},
            r"with args = {'num_heads': 0} takes no .* \(integer modulo by zero\); use other args",
        ),
        (
            {"args": {"embed_dim": True}},
            r"with args = {'embed_dim': True} takes no .*\); use other args, another network",
        ),
        ({"args": {"num_classes": 2}}, r"args\.num_classes: follows from the data's tags; leave it out"),
        ({"args": {"pretrained": True}}, r"args\.pretrained: follows from the model's init"),
        ({"args": {"drop_rate": 0.1}}, r"args\.drop_rate: follows from dropout"),
    ):
        with pytest.raises(ValueError, match=message):
            build("vit_tiny_patch16_224", **options)
    with pytest.raises(ValueError, match=r"arch\.drop_path: timm's ghostnet_050: .*unexpected keyword"):
        build("ghostnet_050", drop_path=0.1)
    dropped = build("vit_tiny_patch16_224", dropout=0.5, drop_path=0.2)
    assert dropped.net.head_drop.p == 0.5
    assert dropped.net.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


def test_names_that_timm_does_not_know_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"name = 'convnext_ato': timm has no such network; near are convnext_atto"):
        build("convnext_ato")
    for name in ("convnext_atto.d2_in1k", "hf-hub:org/name", "local-dir:x"):
        with pytest.raises(ValueError, match=r"must be a name of timm's without the tag of its weights"):
            arch(name)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("dla34", 101, r"takes no 64 bands x 101 frames \(.*\); set front_end\.frames = 128"),
        ("nest_tiny", 128, r"Model only handles square inputs\); use another network"),
        ("pit_ti_224", 128, r"gives features of shape \(1, 256\), no map over mel and time"),
    ],
)
def test_sizes_that_a_network_does_not_take_are_refused_with_one_that_it_takes(
    name: str, frames: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, frames=frames)
    if name == "dla34":
        assert build(name, frames=128)(mels()).shape == (2, 3)


def test_a_recipe_whose_clips_do_not_fit_is_refused_before_it_starts() -> None:
    recipe = load_recipe("demo", ["models.cnn.arch={family='timm', name='dla34'}"])
    with pytest.raises(ValueError, match=r"models\.cnn \(timm on logmel64\): timm's dla34 takes no 64 bands"):
        require_buildable(recipe)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("convnext_atto", "stem.0.weight"),
        ("vit_tiny_patch16_224", "patch_embed.proj.weight"),
        ("swin_s3_tiny_224", "patch_embed.proj.weight"),
        ("beit_base_patch16_224", "patch_embed.proj.weight"),  # a table of relative positions in each block
    ],
)
def test_weights_of_images_start_a_network(name: str, stem: str) -> None:
    small: dict[str, dict[str, Any]] = {
        "beit_base_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
        "swin_s3_tiny_224": {"depths": (1, 1, 1, 1)},
    }
    args = small.get(name, {})
    theirs = drawn(timm.create_model(name, num_classes=7, **args)).state_dict()
    model = build(name, args=args)
    before = torch.get_rng_state()
    weights, dropped = adapt_weights(theirs, model, family="timm")
    assert torch.equal(torch.get_rng_state(), before)
    assert dropped == model.head != ()
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert (set(missing), unknown) == (set(model.head), [])
    torch.testing.assert_close(weights[f"net.{stem}"], theirs[stem].sum(1, keepdim=True))
    same = [key for key, tensor in theirs.items() if torch.equal(weights.get(f"net.{key}", torch.zeros(0)), tensor)]
    assert len(same) > 0.75 * len(theirs), "all but stem, positions and head"
    with pytest.raises(ValueError, match=rf"do not fit timm's {name}: .*[Uu]nexpected key.*odd"):
        adapt_weights(theirs | {"odd": torch.zeros(1)}, model, family="timm")
    fitting = drawn(timm.create_model(name, num_classes=3, **args)).state_dict()
    kept, dropped = adapt_weights(fitting, model, family="timm")
    assert dropped == ()
    assert torch.equal(kept[model.head[0]], fitting[model.head[0].removeprefix("net.")])


def test_own_weights_of_longer_clips_keep_their_middle() -> None:
    source, target = build("vit_tiny_patch16_224", frames=256), build("vit_tiny_patch16_224")
    weights, dropped = adapt_weights(source.state_dict(), target, family="timm")
    assert dropped == ()
    positions = source.net.pos_embed[:, 1:].unflatten(1, (4, 16))
    assert torch.equal(weights["net.pos_embed"][:, 1:], positions[:, :, 4:12].flatten(1, 2))
    assert torch.equal(weights["net.pos_embed"][:, 0], source.net.pos_embed[:, 0])
    cnn = build("convnext_atto", frames=256)
    weights, dropped = adapt_weights(cnn.state_dict(), build("convnext_atto"), family="timm")
    assert dropped == ()
    assert all(torch.equal(weights[name], tensor) for name, tensor in cnn.state_dict().items())


def test_sizes_are_those_of_the_same_network_of_another_family() -> None:
    shape: dict[str, Any] = {"num_classes": 527, "clip_seconds": 10.0, "clip_rate": 16_000}
    front_end = FrontEnd(kind="kaldi128", frames=1024)
    own = model_size(Model(arch=ViT(family="vit", dim=192, depth=12, heads=3, stride=16), front_end=front_end), **shape)
    theirs = model_size(Model(arch=arch("vit_tiny_patch16_224"), front_end=front_end), **shape)
    assert (theirs.params, theirs.macs) == (own.params, own.macs)


def test_it_learns_and_is_taught_in_a_run(tiny: Any, start: Any) -> None:
    run = start(
        tiny(
            "demo",
            "models.cnn={arch={family='timm', name='resnet10t', args={cardinality=1}, drop_path=0.1}}",
            "models.vit={arch={family='timm', name='vit_tiny_patch16_224', args={depth=1, embed_dim=24, num_heads=2}}}",
            "edges=[{teacher='vit', student='cnn'}, {teacher='vit', student='cnn', carries='temporal', weight=1.0}]",
            "schedule={kind='one_way', teachers=['vit'], teacher_steps=2, steps=3}",
        )
    )
    before = {name: tensor.clone() for name, tensor in run.pool.train_state("cnn").tagger.state_dict().items()}
    trained(run)
    after = run.pool.train_state("cnn").tagger.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} >= {
        *("backbone.net.conv1.0.weight", "backbone.net.fc.weight", "backbone.net.bn1.running_mean")
    }
