"""What a GPU does beside the arithmetic: rounding to TF32, waiting, and exchanging objects between processes."""

import warnings

import pytest
import torch
import torch.distributed as dist

from orchestrator.training.ray_trainer import BACKENDS
from tests import small
from tests.integration.test_run import antiphon, outcome_of, settings
from tests.workloads.test_host_syncs import EVERYTHING
from workloads.models.front_end import KINDS, build_front_end
from workloads.runtime.precision import set_tf32
from workloads.train_step import train_step

pytestmark = pytest.mark.gpu


def rounding_error(device: str) -> float:
    """The largest error of a product of float32 matrices, relative to its largest element."""
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(device).unbind()
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())


def test_tf32_is_used_where_a_recipe_asks_for_it_and_only_there(device, only_cuda, recipe_on, start_on):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    start_on(recipe_on(device, "mutual", "train.tf32=true"))
    assert 1e-5 < rounding_error(device) < 1e-2
    start_on(recipe_on(device, "mutual"))
    assert rounding_error(device) < 1e-5


@pytest.mark.parametrize("clip_rate", [16_000, 44_100])
@pytest.mark.parametrize("kind", KINDS)
def test_log_mels_are_the_same_with_tf32_and_autocast(kind, clip_rate, device):
    front_end = build_front_end(kind, clip_rate=clip_rate).to(device)
    x_BT = 0.1 * torch.randn(2, clip_rate, generator=torch.Generator().manual_seed(0)).to(device)
    sound_BT = torch.arange(clip_rate, device=device).expand(2, -1) < clip_rate // 2
    with torch.no_grad():
        set_tf32(False)
        expected = front_end(x_BT, sound_BT)
        set_tf32(True)
        with torch.autocast(device, torch.bfloat16):
            mel_BMF = front_end(x_BT, sound_BT)
    set_tf32(False)
    assert torch.equal(mel_BMF, expected)
    on_cpu = build_front_end(kind, clip_rate=clip_rate)(x_BT.cpu(), sound_BT.cpu())
    assert torch.allclose(expected.cpu(), on_cpu, atol=0.05, rtol=0)


def test_a_step_waits_for_the_gpu_once(device, only_cuda, recipe_on, start_on):
    run = start_on(recipe_on(device, "mutual", *EVERYTHING))
    phase = run.phases[-1]
    sources = run.pool.enter_phase(phase)
    run.step = phase.start
    train_step(run, phase, sources)
    run.step += 1
    shards = [run.batches.shard(run.step, index, with_clean_view=True, device=device) for index in range(2)]
    run.batches.shard = lambda step, index, *, with_clean_view, device: shards[index]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(run, phase, sources)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    assert len(waits) == 1, waits


def test_loaders_give_the_same_shards(device, recipe_on, start_on):
    """From memory that is pinned for the GPU, which copies from it while the next shards are read."""
    shards = []
    for loaders in (0, 2):
        run = start_on(recipe_on(device, "mutual", "augment.roll=0.5", f"train.loaders={loaders}"))
        with run.batches.loaded_ahead(range(6), range(1), torch.device(device)):
            shards.append([run.batches.shard(step, 0, with_clean_view=True, device=device) for step in range(6)])
    for one, other in zip(*shards, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.x_BT, other.x_BT)
        assert torch.equal(one.clean().x_BT, other.clean().x_BT)


def test_objects_are_exchanged_without_the_gpu(device, only_cuda, tmp_path):
    """In one process, since NCCL wants a GPU for each: the group that Ray's workers get, and one made from it."""
    dist.init_process_group(BACKENDS[device], init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        groups = [None, dist.new_group()]
        sums = torch.ones(2, device=device)
        for group in groups:
            dist.all_reduce(sums, group=group)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        for group in groups:
            values = [None]
            dist.all_gather_object(values, {"step": 3}, group=group)
            assert values == [{"step": 3}]
        torch.cuda.set_sync_debug_mode("default")
        assert sums.tolist() == [1.0, 1.0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()


def test_the_command_line_trains_on_ray_and_its_tagger_is_evaluated(device, tmp_path):
    clips = [*(value for value in small.SIZES if value.startswith("data.")), f"data.cache={tmp_path}/clips"]
    values = [*small.SIZES, *small.TWO_MODELS, "schedule.burn_in=3", "schedule.period=3", "schedule.turns=2"]
    values += [*clips, f"train.device={device}", "train.precision=bf16"]
    storage = ["--json", "--storage", f"{tmp_path}/runs", "--tracking", "none"]
    outcome = outcome_of(antiphon("run", "demo", *storage, *settings(values)))
    assert outcome["status"] == "done"
    row = outcome["models"]["cnn"]
    evaluated = outcome_of(antiphon("evaluate", row["checkpoint"], "--data", "demo", *settings(clips), "--json"))
    assert evaluated["scores"]["log_loss"] == pytest.approx(row["test"]["log_loss"], rel=1e-3)
