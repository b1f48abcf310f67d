"""Stored teacher outputs against other layouts: `make bench`. Prints ratios and asserts no time.

Readers run in turns in one process on one thread; the median of the turns' ratios is what can be compared.

Axes: N rows, C tags, J kept tags of a row, B rows of a batch.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.storage.object_store import file_sizes
from orchestrator.stores.writer import begin_store, finish_store, write_shard
from tests import stores
from tests.official import keyed_state
from workloads.models.catalog import CATALOG
from workloads.models.families import build_backbone
from workloads.stores.topk import TopK, select_topk

ROWS, TAGS, K = 40_000, 527, 20
BATCHES = {32: 1000, 1: 5000}  # clips read at once -> how often in a turn
TURNS = 7
TAG_NAMES = Path("workloads/data/audioset_tags.txt").read_text().splitlines()
ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))

pytestmark = pytest.mark.bench


def clip_names(count: int) -> list[str]:
    """As YouTube's: 11 random characters."""
    return sorted("".join(name) for name in np.random.default_rng(0).choice(ALPHABET, (count, 11)))


def correlated_logits(rows: int) -> NDArray[np.float16]:
    """As of a trained tagger: tags of different frequency, correlated by 32 common causes."""
    rng = np.random.default_rng(1)
    causes, loadings = rng.normal(size=(rows, 32)), rng.normal(size=(32, TAGS)) / 32**0.5
    return (rng.normal(-6, 1.5, TAGS) + 1.2 * (causes @ loadings) + 0.5 * rng.normal(size=(rows, TAGS))).astype("f2")


def tagger_logits(rows: int) -> NDArray[np.float16]:
    """Of an mn04 with drawn weights on log-mels of drawn noise."""
    model = build_backbone(CATALOG["mn04"].arch, bands=128, frames=32, num_classes=TAGS)
    state = model.state_dict()
    drawn = keyed_state({name: list(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict(drawn | {name: state[name] for name in ("temperature",) if name in state})
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mels = (
            torch.randn(50, 128, 1, generator=generator) + torch.randn(50, 128, 32, generator=generator)
            for _ in range(rows // 50)
        )
        return torch.cat([model(mel_BMF) for mel_BMF in mels]).numpy().astype(np.float16)


def largest(values_NC: NDArray[np.float16]) -> TopK:
    tags = select_topk(values_NC, K)
    return TopK(tags, np.take_along_axis(values_NC, tags, axis=1))


def parquet_size(top: TopK, **options: Any) -> int:
    import pyarrow
    import pyarrow.parquet

    arrays = {"tags": top.tags.astype(np.int16), "values": top.values}
    columns = {name: pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(a.ravel()), K) for name, a in arrays.items()}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd", **options)
    return buffer.tell()


def packed_size(top: TopK) -> int:
    """The least that was found: differences of tags and values in descending order, each with its bytes apart, zstd."""
    import pyarrow

    steps = np.diff(top.tags, axis=1, prepend=0).astype(np.int16)
    values = -np.sort(-top.values.astype(np.float32), axis=1)
    parts = (steps, values.astype(np.float16))  # the order of values would be lost: a lower bound
    return sum(
        len(pyarrow.Codec("zstd", compression_level=9).compress(part.view(np.uint8).reshape(-1, 2).T.tobytes()))
        for part in parts
    )


def write(uri: str, values_NC: NDArray[np.float16], clips: list[str], *, k: int, per_shard: int = 1024) -> float:
    """Write a store of one view; returns the seconds."""
    described = stores.about(tags=TAGS, views=1, k=k) | {"tags": TAG_NAMES}
    started = time.perf_counter()
    description, plan = begin_store(uri, described, clips, clips_per_shard=per_shard)
    for shard in plan:
        start = shard.number * per_shard
        write_shard(uri, description, shard, {"outputs": values_NC[start : start + per_shard, None]})
    finish_store(uri, description, plan)
    return time.perf_counter() - started


def test_bytes_of_a_row(tmp_path, capsys):
    drawn = {
        "independent normal": np.random.default_rng(0).normal(0, 0.05, (10_000, TAGS)).astype(np.float16),
        "correlated": correlated_logits(10_000),
        "mn04, drawn weights": tagger_logits(2000),
    }
    by_byte = {"tags.list.element": "DELTA_BINARY_PACKED", "values.list.element": "BYTE_STREAM_SPLIT"}
    with capsys.disabled():
        print()
        for name, values in drawn.items():
            top, rows = largest(values), len(values)
            write(str(tmp_path / name), values, clip_names(rows), k=K)
            sizes = file_sizes(str(tmp_path / name))
            shards = sum(size for path, size in sizes.items() if path.startswith("shards/"))
            print(
                f"{name}, bytes of a row: store {sum(sizes.values()) / rows:.1f}, its shards {shards / rows:.1f}; tags "
                f"and values in Parquet {parquet_size(top) / rows:.1f}, by byte "
                f"{parquet_size(top, use_dictionary=False, column_encoding=by_byte) / rows:.1f}, least found "
                f"{packed_size(top) / rows:.1f}"
            )


def write_as_ced(file: Path, values_NC: NDArray[np.float16]) -> float:
    """HDF5 in CED's layout: resizable data sets, appended batch by batch; returns the seconds."""
    import h5py

    started = time.perf_counter()
    with h5py.File(file, "w") as out:
        kinds = {"topk_values": ((K,), "f2"), "topk_indexes": ((K,), "i2"), "seeds": ((), "i4")}
        sets = {
            name: out.create_dataset(name, (0, *row), dtype, maxshape=(None, *row))
            for name, (row, dtype) in kinds.items()
        }
        for start in range(0, len(values_NC), 128):
            top = largest(values_NC[start : start + 128])
            parts = {"topk_values": top.values, "topk_indexes": top.tags, "seeds": np.arange(len(top.tags))}
            for name, part in parts.items():
                sets[name].resize(start + len(part), axis=0)
                sets[name][start:] = part
    return time.perf_counter() - started


def ced_reader(file: Path, clips: list[str]) -> Iterator[Callable[[list[str]], object]]:
    """Row by row, as CED's data set reads: values, tags and seed of one sample."""
    import h5py

    place = {clip_id: number for number, clip_id in enumerate(clips)}
    with h5py.File(file, "r") as opened:
        values, tags, seeds = (opened[name] for name in ("topk_values", "topk_indexes", "seeds"))
        yield lambda ids: [(values[row], tags[row], seeds[row]) for row in map(place.__getitem__, ids)]


def rates(readers: dict[str, Callable[[list[str]], object]], batches: list[list[str]]) -> dict[str, list[float]]:
    """Rows a second of each reader in each turn; a turn before them warms up."""
    found: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(TURNS + 1):
        for name, read in readers.items():
            started = time.perf_counter()
            for batch in batches:
                read(batch)
            if turn:
                found[name].append(sum(map(len, batches)) / (time.perf_counter() - started))
    return found


def test_random_reads(tmp_path, capsys):
    pytest.importorskip("h5py", reason="no h5py; uv pip install 'antiphon[hdf5]'")
    values, clips = correlated_logits(ROWS), clip_names(ROWS)
    seconds = {f"store, k = {k}": write(str(tmp_path / f"store-{k}"), values, clips, k=k) for k in (K, 0)}
    seconds["CED"] = write_as_ced(tmp_path / "ced.h5", values)
    np.save(tmp_path / "dense.npy", values)
    mapped, place = np.load(tmp_path / "dense.npy", mmap_mode="r"), {name: row for row, name in enumerate(clips)}
    top, dense = (stores.reader(str(tmp_path / f"store-{k}"), tmp_path, memory_bytes=2**28) for k in (K, 0))
    by_row = stores.reader(str(tmp_path / f"store-{K}"), tmp_path, memory_bytes=0)
    readers: dict[str, Callable[[list[str]], object]] = {
        "store, top k": lambda ids: top.read("outputs", ids, 0),
        "store, top k, row by row": lambda ids: by_row.read("outputs", ids, 0),
        "store, dense": lambda ids: dense.read("outputs", ids, 0),
        "store, dense, to fp32": lambda ids: dense.read("outputs", ids, 0).values.astype(np.float32),
        ".npy": lambda ids: mapped[[place[clip_id] for clip_id in ids]],
        ".npy, to fp32": lambda ids: mapped[[place[clip_id] for clip_id in ids]].astype(np.float32),
        "CED": next(ced := ced_reader(tmp_path / "ced.h5", clips)),
    }
    whole = dense.read("outputs", clips, 0).values
    assert np.array_equal(whole, mapped)
    rng = np.random.default_rng(2)
    with capsys.disabled():
        print("\nwritten, rows a second: " + ", ".join(f"{name} {ROWS / taken:.0f}" for name, taken in seconds.items()))
        for size, count in BATCHES.items():
            batches = [[clips[row] for row in rng.integers(ROWS, size=size)] for _ in range(count)]
            found = rates(readers, batches)
            print(f"random reads, {size} at once, rows a second: ", end="")
            print(", ".join(f"{name} {statistics.median(turns):.0f}" for name, turns in found.items()))
            for name, base in (
                ("store, top k", "CED"),
                ("store, top k, row by row", "CED"),
                ("store, top k", ".npy"),
                ("store, dense", ".npy"),
                ("store, dense, to fp32", ".npy, to fp32"),
                ("store, top k", ".npy, to fp32"),
            ):
                ratios = [one / other for one, other in zip(found[name], found[base], strict=True)]
                print(f"  {name} / {base}: {statistics.median(ratios):.2f}")
    ced.close()


FAR = """
import json, sys, time
from pathlib import Path
import numpy as np
from tests import stores
from tests.bench.test_stores import ROWS, clip_names
clips, rng = clip_names(ROWS), np.random.default_rng(3)
reader = stores.reader(sys.argv[1], Path(sys.argv[2]))
taken = []
for epoch in range(3):
    order, started = rng.permutation(ROWS), time.perf_counter()
    for start in range(0, ROWS, 32):
        reader.read("outputs", [clips[row] for row in order[start : start + 32]], 0)
    taken.append(time.perf_counter() - started)
print(json.dumps([ROWS / seconds for seconds in taken]))
"""
WRITE = """
import sys
from tests.bench.test_stores import K, ROWS, clip_names, correlated_logits, write
print(ROWS / write(sys.argv[1], correlated_logits(ROWS), clip_names(ROWS), k=K))
"""


def test_epochs_over_a_distant_store(rgw_server, proxy, tmp_path, capsys):
    """A store written by one process to S3 behind a proxy that delays each piece of an answer by 50 ms, and locally;
    then three epochs from each."""
    rgw_server.client().create_bucket(Bucket="distant")

    def run(script: str, *words: str, **env: str) -> str:
        command = [sys.executable, "-c", script, *words]
        done = subprocess.run(command, env={**os.environ, **rgw_server.env, **env}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    proxy.delay_s = 0.05
    written = {
        "50 ms away": run(WRITE, "s3://distant/store", AWS_ENDPOINT_URL=proxy.endpoint),
        "local": run(WRITE, str(tmp_path / "store")),
    }
    far = json.loads(run(FAR, "s3://distant/store", str(tmp_path), AWS_ENDPOINT_URL=proxy.endpoint))
    near = json.loads(run(FAR, str(tmp_path / "store"), str(tmp_path)))
    with capsys.disabled():
        print(f"\nrows written a second: { ({name: round(float(rate)) for name, rate in written.items()}) }", end="")
        rates = {name: [round(rate) for rate in found] for name, found in {"50 ms away": far, "local": near}.items()}
        print(f"\nthree epochs of {ROWS} rows, 32 at once, rows a second: {rates}")
