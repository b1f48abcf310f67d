"""What the settings of a training step cost on this CPU: `make bench`. Prints times and asserts none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from tests import stores
from tests.bench.test_models import printing, timings
from tests.orchestrator.artifacts.test_tag import publish
from workloads.config.recipe import FRONT_ENDS, Model, restore
from workloads.data.augment import VIEW_VERSION
from workloads.data.synthetic import synthetic_clips
from workloads.distill.train_state import TrainState
from workloads.models import front_end as mels
from workloads.models.front_end import build_front_end
from workloads.models.tagger import build_tagger
from workloads.run import Run
from workloads.train_step import train_step

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


def test_a_store_against_a_live_teacher(tiny, start, tmp_path, capsys):
    """Steps of mn10 taught by AST-base, from its logits in a store and from its forward."""
    own = ["data.clip_seconds=10.0", "train.shard_size=4", "train.log_every=1000", "augment={gain_db=6.0}"]
    model = restore(
        Model, {"arch": {"family": "ast", "size": "base"}, "front_end": {"kind": "kaldi128", "frames": 1024}}
    )
    recipe = load_recipe("demo")
    tags = tuple(sorted({tag for clip in synthetic_clips(recipe.data) for tag in clip.tags}))
    shape: dict[str, Any] = {"tags": tags, "labels": "multi", "clip_seconds": 10.0, "clip_rate": 32_000}
    folder = publish(build_tagger(model, name="ast", seed=0, **shape).eval(), tmp_path / "ast")
    student = 'student={arch={family="mn", width=1.0}, front_end={kind="efficientat128"}}'
    teacher = (
        f'teacher={{arch={{family="ast", size="base"}}, front_end={{kind="kaldi128", frames=1024}}, init="{folder}"}}'
    )
    live = tiny(
        "demo",
        *own,
        f"models={{{student}, {teacher}}}",
        "edges=[{teacher='teacher', student='student'}]",
        "schedule={kind='one_way', teachers=['teacher'], teacher_steps=0, steps=1000}",
    )
    about = stores.about(tags=len(tags), views=1, k=5) | {"tags": list(tags)}
    views = {"version": VIEW_VERSION, "augment": {"view_seed": 0, "gain_db": 6.0}, "clip_seconds": 10.0}
    about["views"] = views | {"rate": 32_000, "count": 8}
    stores.fill(str(tmp_path / "store"), about, [clip.clip_id for clip in synthetic_clips(live.data)], per_shard=50)
    stored = tiny(
        "demo",
        *own,
        f"models={{{student}}}",
        f"edges=[{{teacher='store:{tmp_path}/store', student='student', view='other'}}]",
        "schedule={kind='mutual', burn_in=0, steps=1000}",
    )
    runs = {"live": start(live), "stored": start(stored)}
    torch.set_num_threads(1)
    with printing(
        capsys, "mn10 taught by AST-base, 4 clips of 10 s, one thread: ms of a step live, from a store, ratio"
    ):
        print(f"  {timings({name: step_of(run) for name, run in runs.items()}, turns=3)}")


def mels_of(
    kind: str, x_BT: torch.Tensor, *, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], torch.Tensor]:
    front_end = build_front_end(kind, clip_rate=FRONT_ENDS[kind])

    def call() -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(mels, "SAMPLES_AT_ONCE", at_once)
            mel_BMF: torch.Tensor = front_end(x_BT)
            return mel_BMF

    return call


@pytest.mark.parametrize("kind", ["kaldi128", "efficientat128", "ced64", "logmel64", "logmel40"])
def test_log_mels_in_parts(kind, monkeypatch, capsys):
    x_BT = torch.randn(32, 10 * FRONT_ENDS[kind], generator=torch.Generator().manual_seed(0))
    sizes = {"at once": x_BT.numel(), "in parts": mels.SAMPLES_AT_ONCE}
    forms = {name: mels_of(kind, x_BT, at_once=size, monkeypatch=monkeypatch) for name, size in sizes.items()}
    assert torch.equal(*(form() for form in forms.values()))
    with printing(capsys, f"log-mels of 32 clips of 10 s, {kind}: ms at once, ms in parts (ours), ratio"):
        print(f"  {timings(forms)}")
