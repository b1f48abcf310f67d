"""timm's networks: those trained on sound are imported, those trained on images are refused with advice."""

import re
import tomllib

import pytest
import timm
import torch
from torch import Tensor

from tests.hearing import mels, taught
from tests.official import keyed_state
from workloads.config.architectures import AST, Arch, EfficientNet, ViT
from workloads.config.recipe import FrontEnd, Model, restore
from workloads.models.families import build_backbone
from workloads.models.official.converted import Converted
from workloads.models.official.timm import convert
from workloads.models.tagger import Tagger

CLOSE = 2e-5


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("deit_tiny_distilled_patch16_224", AST(family="ast", size="tiny")),
        ("vit_tiny_patch16_224", ViT(family="vit", dim=192, depth=12, heads=3)),
        ("deit_small_patch16_224", ViT(family="vit", dim=384, depth=12, heads=6)),
        ("vit_tiny_patch16_384", ViT(family="vit", dim=192, depth=12, heads=3)),
        ("efficientnet_b0", EfficientNet(family="efficientnet", variant="b0")),
        ("efficientnet_b2", EfficientNet(family="efficientnet", variant="b2")),
    ],
)
def test_weights_of_images_are_refused_with_an_init_that_works(name: str, arch: Arch) -> None:
    state = timm.create_model(name, pretrained=False).state_dict()
    with pytest.raises(ValueError, match=r"weights of images .*put init = 'FILE'") as caught:
        convert(state)
    advised = re.search(r"arch = \{.*\}", str(caught.value))
    assert advised
    assert restore(Arch, tomllib.loads(advised[0])["arch"]) == arch
    model = Model(arch=arch, front_end=FrontEnd(kind="kaldi128", frames=256))
    tagger = Tagger(model, tags=("dog", "rain"), labels="multi", clip_seconds=2.5, clip_rate=16_000)
    tagger.load_initial(state)
    own = {name.removeprefix("net."): tensor for name, tensor in tagger.backbone.state_dict().items()}
    same = [name for name, tensor in state.items() if name in own and own[name].shape == tensor.shape]
    assert len(same) > 0.9 * len(state)  # all but stem, positions and heads
    assert all(torch.equal(own[name], state[name]) for name in same)


def on_sound(name: str, **options) -> torch.nn.Module:
    return timm.create_model(name, pretrained=False, in_chans=1, num_classes=7, **options)


def load_keyed_weights(net: torch.nn.Module) -> dict[str, Tensor]:
    """Keyed weights, loaded into the network: timm initialises positions and batch norm as constants."""
    state = keyed_state({name: list(tensor.shape) for name, tensor in net.state_dict().items()})
    net.load_state_dict(state)
    return state


def rebuilt(converted: Converted, frames: int) -> torch.nn.Module:
    arch, classes = converted.model.arch, converted.num_classes
    model = build_backbone(arch, bands=128, frames=frames, num_classes=classes)
    model.load_state_dict(converted.weights)
    return model.eval()


@pytest.mark.parametrize(("frames", "seconds"), [(512, 5.0), (992, 10.0)])
def test_a_vit_trained_on_sound_is_imported(frames: int, seconds: float) -> None:
    theirs = on_sound("vit_tiny_patch16_224", img_size=(128, frames)).eval()
    converted = convert(load_keyed_weights(theirs))
    arch = ViT(family="vit", dim=192, depth=12, heads=3)
    assert converted.model == Model(arch=arch, front_end=FrontEnd(kind="kaldi128", frames=frames))
    assert (converted.num_classes, converted.clip_seconds, converted.dropped) == (7, seconds, ())
    mel_BMF = torch.randn(2, 128, frames, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(mel_BMF.unsqueeze(1))
        torch.testing.assert_close(rebuilt(converted, frames)(mel_BMF), expected, rtol=0, atol=CLOSE)


def test_an_efficientnet_trained_on_sound_is_imported() -> None:
    mel_BMF = mels(128, 100, kinds=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = taught(on_sound("efficientnet_b0"), mel_BMF.unsqueeze(1), kinds=7)
    converted = convert(theirs.state_dict())
    arch = EfficientNet(family="efficientnet", variant="b0")
    assert converted.model == Model(arch=arch, front_end=FrontEnd(kind="kaldi128"))
    assert (converted.num_classes, converted.clip_seconds, converted.dropped) == (7, 10.0, ())
    with torch.no_grad():
        expected = theirs(mel_BMF.unsqueeze(1))
        torch.testing.assert_close(rebuilt(converted, 100)(mel_BMF), expected, rtol=1e-4, atol=CLOSE)
    assert expected.std(dim=0).max() > 0.05


def test_misfits_of_timm_are_named() -> None:
    state = on_sound("vit_tiny_patch16_224", img_size=(128, 256)).state_dict()
    with pytest.raises(ValueError, match=r"missing: head\.weight"):
        convert({name: tensor for name, tensor in state.items() if not name.startswith("head.")})
    with pytest.raises(ValueError, match=r"unknown: fc_norm\.weight"):
        convert(state | {"fc_norm.weight": torch.zeros(192)})
    with pytest.raises(ValueError, match=r"pos_embed: 100 positions of patches .* are no 8 rows"):
        convert(state | {"pos_embed": torch.zeros(1, 101, 192)})
    with pytest.raises(ValueError, match=r"neither conv_stem\.weight nor patch_embed\.proj\.weight"):
        convert({"weight": torch.zeros(3)})
    distilled = on_sound("deit_tiny_distilled_patch16_224").state_dict()
    with pytest.raises(ValueError, match="dist_token: a distilled DeiT has a head for each of two tokens"):
        convert(distilled)
    images = timm.create_model("deit_tiny_patch16_224", pretrained=False).state_dict()
    with pytest.raises(ValueError, match="unknown: odd"):
        convert(images | {"odd": torch.zeros(1)})  # not with advice that would not work
