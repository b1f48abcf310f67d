"""What the settings of a training step cost on this CPU: `make bench`. Prints times and asserts none."""

import copy
from collections.abc import Callable

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from tests.bench.test_models import printing, timings
from workloads.distill.train_state import TrainState
from workloads.train import Run, train_step

pytestmark = pytest.mark.bench


def demo_run(tiny, start, *settings: str) -> Run:
    """The demo with its own models and clips."""
    clips = f"train.shard_size={load_recipe('demo').train.shard_size}"
    own = ["data.clip_seconds=2.0", clips, "train.log_every=1000", *settings]
    archs = ('{family="mn", width=0.3, bn_momentum=0.1}', '{family="vit", dim=96, depth=4, heads=4, pool="avg"}')
    own += [f"models.{name}.arch={arch}" for name, arch in zip(("cnn", "vit"), archs, strict=True)]
    return start(tiny("demo", *own))


def step_of(run: Run) -> Callable[[], object]:
    sources = run.pool.enter_phase(run.phases[0])
    return lambda: train_step(run, run.phases[0], sources)


def test_half_precision_of_a_step(tiny, start, capsys):
    forms = {kind: step_of(demo_run(tiny, start, f"train.precision={kind}")) for kind in ("fp32", "bf16")}
    with printing(capsys, "demo, a step of both models: ms fp32, ms bf16, ratio"):
        print(f"  {timings(forms)}")


def optimizer_step(state: TrainState, *, fused: bool) -> Callable[[], object]:
    parameters = [copy.deepcopy(parameter) for parameter in state.tagger.parameters()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return torch.optim.AdamW(parameters, fused=fused).step


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_fused_optimizer(name, tiny, start, capsys):
    state = demo_run(tiny, start).pool.train_state(name)
    forms = {kind: optimizer_step(state, fused=kind == "fused") for kind in ("plain", "fused")}
    with printing(capsys, f"demo's {name}: ms of AdamW's step plain, fused (ours), ratio"):
        print(f"  {timings(forms, turns=25)}")
