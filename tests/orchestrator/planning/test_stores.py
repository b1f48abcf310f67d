"""What a store that teaches a run costs it, compared with a real run; whose outputs teach is printed."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from cluster.spec_speed import Speed, StorageSpeed
from orchestrator.planning.cost import Clips, plan_cost
from orchestrator.planning.fetching import fetch_stores
from orchestrator.planning.stores import StoreCost, plan_stores
from orchestrator.recipes.loader import resolve
from tests import stores
from workloads.config.recipe import Recipe
from workloads.data.augment import VIEW_VERSION
from workloads.data.synthetic import synthetic_clips
from workloads.distill.schedule import plan_phases
from workloads.models.size import Size
from workloads.runtime.opener import LocalFiles
from workloads.stores.row_memory import RowMemory
from workloads.train import advance

VIEWS, K = 3, 4
BOTH = "{teacher='cnn', student='vit', weight=0.3}, {teacher='vit', student='cnn', weight=0.3}"


@pytest.fixture
def taught(tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Both models of the small demo alternate, and a store teaches each of them too; 12 steps of 8 clips."""

    def make(uri: str) -> Recipe:
        edges = [BOTH, *(f"{{teacher='store:{uri}', student='{name}', weight=0.4}}" for name in ("cnn", "vit"))]
        plan = "schedule={kind='alternate', burn_in=4, period=4, turns=2}"
        return tiny("demo", f"edges=[{', '.join(edges)}]", plan, "train.eval_every=100")

    return make


@pytest.fixture
def filled(tiny: Callable[..., Recipe]) -> Callable[[str], None]:
    def fill(uri: str) -> None:
        clips = synthetic_clips(tiny("demo").data)
        views = {"version": VIEW_VERSION, "augment": asdict(tiny("demo").augment), "clip_seconds": 1.0, "rate": 16_000}
        tags = sorted({tag for clip in clips for tag in clip.tags})
        about = stores.about(tags=len(tags), k=K, views=VIEWS)
        about |= {"tags": tags, "views": views | {"count": VIEWS}}
        stores.fill(uri, about, [clip.clip_id for clip in clips], per_shard=30)

    return fill


def planned(recipe: Recipe, files: Any) -> tuple[StoreCost, ...]:
    phases, clips = plan_phases(recipe), Clips(train=72, val=8, test=20, tags=10)
    sizes = {name: Size(1, 1, 1, 1) for name in recipe.models}
    return plan_stores(recipe, phases, plan_cost(recipe, phases, clips, sizes), files)


def test_a_run_reads_the_planned_rows(taught, filled, start, tmp_path, monkeypatch):
    filled(str(tmp_path / "store"))
    recipe, read, memories = taught(str(tmp_path / "store")), [], set()
    real = RowMemory.read

    def counted(memory: RowMemory, numbers_B: Any, view: int) -> Any:
        rows = real(memory, numbers_B, view)
        read.append(len(rows))
        memories.add(memory)
        return rows

    monkeypatch.setattr(RowMemory, "read", counted)
    (cost,) = planned(recipe, LocalFiles())
    for _ in advance(start(recipe)):
        pass
    assert sum(read) == (4 * 2 + 4 + 4) * 8
    assert cost.bytes_read == sum(read) * cost.row_bytes
    assert cost.step_bytes == 2 * 8 * cost.row_bytes
    (memory,) = memories
    assert memory.num_planes == VIEWS
    kept = memory.read(np.arange(1, dtype=np.int32), 0).nbytes
    assert (cost.row_bytes, kept) == (4 * 2 + 2, 4 * 2 + 4 * 2), "4 of 10 tags are a set of 2 bytes in a file"
    assert cost.memory_bytes == 2 * 100 * kept + 12 * 72, "1.3 epochs read two of the three views"
    files = list((tmp_path / "store" / "shards").iterdir())
    assert cost.files == len(files) == 4
    assert cost.file_bytes == sum(path.stat().st_size for path in files)
    assert (cost.edges, cost.remote) == (("store-to-cnn", "store-to-vit"), False)
    assert cost.teachers == {"cnn": "a" * 64}


def test_files_on_s3_are_requests_and_bytes_of_each_node():
    shape: dict[str, Any] = {
        "uri": "s3://b/s",
        "column": "outputs",
        "edges": (),
        "teachers": {},
        "clips": 1,
        "views": 1,
        "row_bytes": 1,
    }
    shape |= {"bytes_read": 0, "step_bytes": 0, "memory_bytes": 0}
    far = StoreCost(**shape, files=80, file_bytes=8 * 10**9, remote=True)
    near = StoreCost(**shape, files=80, file_bytes=8 * 10**9, remote=False)
    slow = StorageSpeed(gbps=64, request_ms=100, requests_per_second=1e9)
    found = fetch_stores([far, near], Speed(network_gbps=8), slow, nodes=2, shared=False)
    assert found.requests == 80 / 8 * 0.1, "eight at a time"
    assert found.download == pytest.approx(8)  # 8 GB over 8 Gbit/s
    busy = StorageSpeed(gbps=8, request_ms=0, requests_per_second=10, prefixes=1)
    found = fetch_stores([far, near], Speed(network_gbps=1000), busy, nodes=2, shared=False)
    assert (found.requests, found.download) == (pytest.approx(16), pytest.approx(16))  # of two nodes
    shared = fetch_stores([far, near], Speed(network_gbps=1000), busy, nodes=2, shared=True)
    assert (shared.requests, shared.download) == (pytest.approx(8), pytest.approx(8))
    assert vars(fetch_stores([near], Speed(), busy, nodes=2, shared=False)) == dict.fromkeys(vars(found), 0.0)


def test_plan_and_dry_run_name_the_teachers(taught, filled, antiphon, tmp_path):
    uri = str(tmp_path / "store")
    filled(uri)
    (tmp_path / "taught.json").write_text(json.dumps(resolve(taught(uri))))
    lines = antiphon("plan", tmp_path / "taught.json").out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("store  "))
    assert lines[place] == f"store        {uri}: column outputs teaches store-to-cnn, store-to-vit"
    assert lines[place + 1].split() == ["outputs", "of", "cnn", "a" * 12]
    assert "4 files of" in lines[place + 4]
    found = json.loads(antiphon("plan", tmp_path / "taught.json", "--json").out)
    assert [store["teachers"] for store in found["stores"]] == [{"cnn": "a" * 64}]
    dry = antiphon("run", tmp_path / "taught.json", "--dry-run").out
    assert f"store-to-vit: column outputs of {uri}, outputs of cnn {'a' * 12}\n" in dry


def test_with_numbers_instead_of_data_a_store_need_not_be_at_hand(taught, antiphon, tmp_path):
    (tmp_path / "taught.json").write_text(json.dumps(resolve(taught("/nowhere"))))
    done = antiphon("plan", tmp_path / "taught.json", "--clips", "100", "--tags", "10", "--json")
    assert (done.code, json.loads(done.out)["stores"]) == (0, [])
    assert "note: not counted: store '/nowhere': there is no description.json" in done.err
    assert antiphon("plan", tmp_path / "taught.json").code == 2
