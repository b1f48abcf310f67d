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


PARTS = [
    "data.clip_seconds=10.0",
    "train.shard_size=16",
    "train.log_every=1000",
    'models.cnn.arch={family="mn", width=0.4}',
    'models.vit.arch={family="ced", size="tiny"}',
    'schedule={kind="alternate", burn_in=0, period=1000, turns=2, order=["cnn", "vit"]}',
]


def parts_of(run: Run) -> Callable[[], object]:
    """What a step of the cnn, taught by the vit, must do: its two passes, the teacher's forward, the optimizer."""
    state, teacher = run.pool.states["cnn"], run.pool.states["vit"].tagger
    shard = run.batches.shard(0, 0)
    mel_BMF, teachers_BMF = shard.mel(state.tagger.front_end), shard.mel(teacher.front_end)

    def call() -> None:
        with torch.no_grad():
            teacher_BC = teacher(teachers_BMF)
        student_BC = state.tagger(mel_BMF)
        torch.nn.functional.binary_cross_entropy_with_logits(student_BC, teacher_BC.sigmoid()).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()

    return call


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_step_against_the_parts_that_it_must_have(loaders, tiny, start, capsys):
    """Beside these it loads clips, computes log-mels, losses, gradient norms, averages."""
    run = start(tiny("demo", *PARTS, f"train.loaders={loaders}"))
    torch.set_num_threads(1)
    sources = run.pool.enter_phase(run.phases[0])
    parts, front_end = parts_of(run), run.pool.states["cnn"].tagger.front_end
    mels = timings({"mels": lambda: run.batches.shard(0, 0).mel(front_end), "parts": parts}, turns=5).split()[0]

    def step() -> None:
        train_step(run, run.phases[0], sources)
        run.step += 1

    with run.batches.loaded_ahead(range(10), run.shards, run.session.device):
        step_and_parts = timings({"step": step, "parts": parts})
    with printing(capsys, f"mn04 taught by ced_tiny, 16 clips of 10 s, {loaders} loaders: ms step, parts, ratio"):
        print(f"  {step_and_parts}\n  clips and log-mels alone, in this thread: {mels} ms")
