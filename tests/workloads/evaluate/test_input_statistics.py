"""Mean and deviation of a front end: those of the inputs that the networks get of the training clips."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from workloads.config.recipe import Recipe
from workloads.data.batches import evaluation_batches
from workloads.data.prepare import prepare
from workloads.evaluate.input_statistics import input_statistics
from workloads.models.tagger import Tagger
from workloads.runtime.opener import LocalFiles


@pytest.mark.parametrize("frames", [0, 50, 130])
def test_inputs_normalised_by_them_have_mean_0_and_deviation_1_or_half_of_it(
    tiny: Callable[..., Recipe], frames: int
) -> None:
    """Computed in other batches, of windows that are partly padding; AST takes two deviations."""
    settings = (
        f"models.cnn.front_end={{kind='kaldi128', frames={frames}}}",
        *("models.ast.arch={family='ast', size='tiny'}", "models.ast.front_end.kind='kaldi128'"),
        *("data.synthetic_clips=50", "data.clip_seconds=0.7", "train.shard_size=7"),
    )
    recipe = tiny("demo", *settings)
    prepared = prepare(recipe, LocalFiles())
    longer = replace(recipe.data, clip_seconds=0.9)
    found = input_statistics(replace(prepared, recipe=replace(recipe, data=longer)))
    assert [found[name].kind for name in ("cnn", "vit", "ast")] == ["kaldi128", "logmel64", "kaldi128"]
    assert [found[name].std / found[name].deviation for name in ("cnn", "vit", "ast")] == [1, 1, 2]
    normalised = tiny("demo", *settings, *(word for name in found for word in found[name].settings(name)))
    clips = prepared.splits.train
    ((rows, shard),) = evaluation_batches(clips, prepared.dataset, prepared.cache, longer, at_once=1000)
    assert len(rows) == len(clips)
    for name, model in normalised.models.items():
        tagger = Tagger(
            model, tags=("a", "b"), labels="single", clip_seconds=longer.clip_seconds, clip_rate=prepared.cache.rate
        )
        inputs_BMF = tagger.normalise(tagger.front_end(shard.x_BT, shard.sound(tagger.front_end))).double()
        assert float(inputs_BMF.mean()) == pytest.approx(0, abs=1e-5)
        assert float(inputs_BMF.std(correction=0)) == pytest.approx(1 / found[name].deviations, abs=1e-5)


def test_sound_that_is_all_alike_to_a_front_end_is_refused(tiny: Callable[..., Recipe], monkeypatch) -> None:
    prepared = prepare(tiny("demo", "data.synthetic_clips=50"), LocalFiles())
    monkeypatch.setattr(prepared.cache, "load", lambda clip_id: torch.zeros(16_000))
    with pytest.raises(ValueError, match=r"models.cnn.front_end: the training clips are all alike to it; are they s"):
        input_statistics(prepared)
