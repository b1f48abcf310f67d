"""A whole tagger, from waveform to logits, with real front ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from workloads.config.architectures import MN, ViT
from workloads.config.recipe import FrontEnd, Model
from workloads.models.tagger import Tagger, build_tagger

TAGS = ("dog", "rain", "saw")
SMALL_MN = MN(family="mn", width=0.1)
SMALL_VIT = ViT(family="vit", dim=12, depth=1, heads=2)


def make(
    model: Model, *, name: str = "cnn", seed: int = 0, tags: tuple[str, ...] = TAGS, seconds: float = 1.0
) -> Tagger:
    return build_tagger(
        model, name=name, tags=tags, labels="single", clip_seconds=seconds, clip_rate=model.front_end.rate, seed=seed
    )


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class RecordingBackbone(nn.Module):
    """Records the backbone's input."""

    def forward(self, mel_BMF: torch.Tensor) -> torch.Tensor:
        self.input_BMF = mel_BMF
        return torch.zeros(len(mel_BMF), len(TAGS))


@pytest.mark.parametrize("kind", ["logmel64", "kaldi128", "efficientat128"])
@pytest.mark.parametrize("arch", [SMALL_MN, SMALL_VIT], ids=["mn", "vit"])
def test_waveforms_become_logits(kind: str, arch: MN | ViT) -> None:
    torch.manual_seed(0)
    model = Model(arch=arch, front_end=FrontEnd(kind=kind))
    tagger = make(model).eval()
    x_BT = torch.randn(2, model.front_end.rate)
    logits_BC = tagger.tag(x_BT)
    assert logits_BC.shape == (2, 3)
    assert torch.equal(logits_BC, tagger(tagger.front_end(x_BT)))
    assert not torch.equal(logits_BC[0], logits_BC[1])


def test_tag_refuses_training_mode() -> None:
    tagger = make(Model(arch=SMALL_MN)).train()
    with pytest.raises(AssertionError, match="training mode"):
        tagger.tag(torch.zeros(1, 16_000))


@pytest.mark.parametrize(
    ("front_end", "mean", "std"),
    [
        (FrontEnd(kind="efficientat128"), -4.5, 5.0),
        (FrontEnd(kind="efficientat128", mean=0.0, std=2.0), 0.0, 2.0),
        (FrontEnd(kind="efficientat128", mean=-1.0), -1.0, 5.0),
    ],
)
def test_normalisation_is_the_recipes_or_the_front_ends(front_end: FrontEnd, mean: float, std: float) -> None:
    torch.manual_seed(0)
    tagger = make(Model(arch=SMALL_MN, front_end=front_end))
    tagger.backbone = RecordingBackbone()
    mel_BMF = torch.randn(2, 128, 100)
    tagger(mel_BMF)
    torch.testing.assert_close(tagger.backbone.input_BMF, (mel_BMF - mean) / std)


@pytest.mark.parametrize("arch", [SMALL_MN, SMALL_VIT], ids=["mn", "vit"])
def test_initial_weights_depend_on_seed_and_name_only(arch: MN | ViT) -> None:
    model = Model(arch=arch)
    torch.manual_seed(1)
    first = make(model)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = make(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, again)
    assert not same_weights(first, make(model, seed=1))
    assert not same_weights(first, make(model, name="cnn2"))


def test_every_parameter_is_counted_once() -> None:
    tagger = make(Model(arch=MN(family="mn")), tags=tuple(f"tag{index}" for index in range(10)))
    assert tagger.num_parameters == pytest.approx(4.215e6, abs=500)  # the width table at 10 classes
    assert sum(parameter.numel() for parameter in tagger.parameters()) == tagger.num_parameters


def test_initial_weights_of_a_whole_tagger_or_of_its_backbone() -> None:
    for arch in (SMALL_MN, SMALL_VIT):
        source, target = make(Model(arch=arch)), make(Model(arch=arch), seed=1)
        target.load_initial(source.state_dict())
        assert target.newly_initialised == ()
        assert same_weights(source, target)
        target = make(Model(arch=arch), seed=1)
        target.load_initial(source.backbone.state_dict())
        assert target.newly_initialised == ()
        assert same_weights(source, target)


@pytest.mark.parametrize(
    ("arch", "head"), [(SMALL_MN, "backbone.classifier.3."), (SMALL_VIT, "backbone.head.")], ids=["mn", "vit"]
)
@pytest.mark.parametrize("other", [("a", "b"), ("a", "b", "c")], ids=["fewer", "as many"])
def test_initial_weights_of_other_tags_leave_the_head_random(arch: MN | ViT, head: str, other: tuple[str, ...]) -> None:
    model = Model(arch=arch)
    source, target, untrained = make(model, tags=other, seed=1), make(model), make(model)
    target.load_initial(source.state_dict(), other)
    assert target.newly_initialised == tuple(f"{head[9:]}{part}" for part in ("weight", "bias"))
    for name, tensor in target.state_dict().items():
        expected = untrained if name.startswith(head) else source
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_initial_weights_of_longer_clips_fit_a_transformer() -> None:
    model = Model(arch=SMALL_VIT)
    source, target = make(model, seconds=3.0), make(model, seconds=1.0)
    target.load_initial(source.state_dict())
    assert target.newly_initialised == ()
    assert target.eval().tag(torch.zeros(1, 16_000)).isfinite().all()


def test_initial_weights_that_do_not_fit_are_refused() -> None:
    tagger = make(Model(arch=SMALL_MN))
    with pytest.raises(ValueError, match="these weights do not fit MobileNet: unknown: "):
        tagger.load_initial(make(Model(arch=SMALL_VIT)).state_dict())


def test_a_family_s_library_is_imported_on_demand() -> None:
    check = "import sys, workloads.models.tagger; assert 'timm' not in sys.modules and 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[3])
