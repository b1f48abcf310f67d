"""Recipes whose models cannot be built for their clips are refused, with the model and the shortest clips it takes."""

import re
from dataclasses import replace

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from workloads.config.recipe import Recipe
from workloads.models.buildable import require_buildable
from workloads.models.front_end import build_front_end
from workloads.models.tagger import build_tagger


def with_clips_of(seconds: float, *settings: str) -> Recipe:
    recipe = load_recipe("demo", list(settings))
    return replace(recipe, data=replace(recipe.data, clip_seconds=seconds))


def build_all(recipe: Recipe) -> None:
    """As a worker does."""
    for name, model in recipe.models.items():
        seconds, rate = recipe.data.clip_seconds, recipe.rate
        build_tagger(model, name=name, tags=("a",), labels="single", clip_seconds=seconds, clip_rate=rate, seed=0)


@pytest.mark.parametrize(
    ("settings", "seconds", "model", "smallest"),
    [
        ((), 0.1, "vit (vit on logmel64): patch = 16: .* 64 bands x 10 frames", 0.16),  # 10 ms a frame
        ((), 0.01, "cnn (mn on logmel64): a spectrum of logmel64 needs 0.05 s or more", 0.16),
        (
            ('models.cnn.arch={family="ondevice", variant="crnn"}',),
            0.06,
            "cnn (ondevice on logmel64): .* 7 frames",
            0.16,
        ),
        (('models.vit.arch={family="ced"}', "models.vit.front_end.kind=ced64"), 0.1, "vit (ced on ced64): patch", 0.15),
        (("models.vit.front_end.frames=100",), 0.02, "cnn .*: a spectrum of logmel64 needs", 0.05),
    ],
)
def test_clips_too_short_for_a_model_are_refused_with_the_shortest_that_work(
    settings, seconds, model, smallest
) -> None:
    rule = model.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"^data.clip_seconds = {seconds}: models.{rule}") as refused:
        require_buildable(with_clips_of(seconds, *settings))
    assert float(re.search(r"data.clip_seconds=([\d.]+) on", str(refused.value))[1]) == smallest
    require_buildable(with_clips_of(smallest, *settings))
    build_all(with_clips_of(smallest, *settings))
    with pytest.raises(ValueError, match=r"patch|needs|frames"):
        build_all(with_clips_of(smallest - 0.01, *settings))


def test_where_longer_clips_do_not_help_none_are_advised() -> None:
    settings = ("models.vit.front_end.kind=logmel40", "models.vit.arch.patch=64", "models.vit.arch.stride=64")
    with pytest.raises(ValueError, match=r"40 bands x .* more bands$"):
        require_buildable(with_clips_of(1.0, *settings))


def test_where_clips_are_too_long_no_shorter_ones_are_called_too_short() -> None:
    settings = ("models.vit.arch.patch=16", "models.vit.arch.stride=1")
    with pytest.raises(ValueError, match=r"data.clip_seconds = 300: models.vit") as refused:
        require_buildable(with_clips_of(300.0, *settings))
    assert "all models work" not in str(refused.value)


def test_a_fixed_number_of_frames_does_not_make_up_for_a_clip_shorter_than_a_window() -> None:
    recipe = with_clips_of(1.0, "models.vit.front_end.frames=100")
    with pytest.raises(ValueError, match=r"needs 0\.05 s or more"):
        build_front_end("logmel64", clip_rate=16_000).input_frames(recipe.models["vit"].front_end, 0.02)


def test_checking_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    require_buildable(with_clips_of(1.25))
    assert torch.equal(torch.get_rng_state(), before)
