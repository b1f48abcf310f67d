"""Outputs that others have published come back from the store bit for bit; files that do not fit are refused."""

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from orchestrator.stores.imports import ced as ced_files
from orchestrator.stores.imports import import_store as module
from orchestrator.stores.imports.import_store import import_store
from orchestrator.stores.imports.source import ImportRequest
from tests import stores
from tests.orchestrator.stores.test_merge import content_of
from tests.published import VIDEOS, logits, write_ced_part, write_efficientat, write_pretrainedsed
from workloads.data.tag_names import tag_names
from workloads.stores.reader import StoreReader

TEN = 10.0


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[StoreReader, dict[str, Any]]]:
    """Import into a new store, read it."""

    def call(format: str, source: Path, *, wanted: Any = None, **known: Any) -> tuple[StoreReader, dict[str, Any]]:
        request = ImportRequest(str(source), format, **known)
        done = import_store(request, str(tmp_path / f"store-{format}"), wanted)
        return stores.reader(str(tmp_path / f"store-{format}"), tmp_path), done

    return call


def test_efficientat_s_logits_are_what_the_file_holds(tmp_path, make, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIPS_PER_SHARD", 4)
    file, index, rows = write_efficientat(tmp_path)
    reader, done = make("efficientat", file, index=str(index))
    nobody = {"count": 0, "first": []}
    assert done == {
        **{"store": reader.store.uri, "rows": 7, "shards": 2, "clips": 7, "views": 1, "tags": 527},
        **{"missing": nobody, "left_out": nobody},
    }
    found = reader.read("outputs", VIDEOS, 0)
    assert found.tags is None
    assert found.values.tobytes() == np.stack([rows[name] for name in VIDEOS]).tobytes()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (index, file)}
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in files.items())
    described = reader.store.description
    assert described["teachers"] == [
        {
            **{"name": "efficientat", "weights_sha256": hashlib.sha256(listed.encode()).hexdigest()},
            **{"front_end": "efficientat128", "imported_from": {"format": "efficientat", "files": files}},
        }
    ]
    assert described["views"] == {"version": 0, "augment": {}, "clip_seconds": 10.0, "rate": 32_000, "count": 1}
    assert (described["labels"], tuple(described["tags"])) == ("multi", tag_names(527, ""))
    assert described["columns"]["outputs"]["holds"] == "logits"


def test_an_import_that_was_killed_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIPS_PER_SHARD", 2)
    file, index, _ = write_efficientat(tmp_path)
    request, out = ImportRequest(str(file), "efficientat", index=str(index)), str(tmp_path / "out")

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_store(request, out, on_shard=kill)
    seen: list[tuple[int, int]] = []
    again = import_store(request, out, on_shard=lambda *counts: seen.append(counts))
    assert seen == [(3, 4), (4, 4)]
    whole = import_store(request, str(tmp_path / "whole"))
    assert again | {"store": ""} == whole | {"store": ""}
    assert content_of(out) == content_of(str(tmp_path / "whole"))
    assert import_store(request, out) == again
    np.save(file, np.load(file) + 1)
    with pytest.raises(ValueError, match=r"out': teachers\[0\]\.weights_sha256 is '.*', expected"):
        import_store(request, out)


def test_only_the_wanted_clips_and_the_largest_values_are_stored(tmp_path, make):
    file, index, rows = write_efficientat(tmp_path, tags=9)
    (tmp_path / "tags.txt").write_text("\n".join("abcdefghi"))
    wanted = {*VIDEOS[:3], "another-one", "and-another"}
    known = {"index": str(index), "tags": str(tmp_path / "tags.txt"), "k": 2, "teacher": "passt"}
    reader, done = make("efficientat", file, wanted=wanted, rate=16_000, clip_seconds=8.0, **known)
    assert done["missing"] == {"count": 2, "first": ["and-another", "another-one"]}
    assert done["left_out"] == {"count": 4, "first": sorted(VIDEOS[3:])}
    found = reader.read("outputs", VIDEOS[:3], 0)
    for name, values, tags in zip(VIDEOS, found.values, found.tags, strict=False):
        best = np.sort(np.argsort(-rows[name], kind="stable")[:2])
        assert (tags.tolist(), values.tolist()) == (best.tolist(), rows[name][best].tolist())
    views, (teacher,) = reader.store.description["views"], reader.store.description["teachers"]
    assert (views["rate"], views["clip_seconds"], teacher["name"]) == (16_000, 8.0, "passt")
    with pytest.raises(
        ValueError, match=r"none of the 1 wanted clips \(x\) has a row; the rows are of .*, .*, .* and 4"
    ):
        make("efficientat", file, wanted={"x"}, **known)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": ""}, r"^--index: is missing: name the pickle"),
        (
            {"rows": {"--4gqARaEJE": 8}},
            r"fname_to_index\.pkl: 1 names have no row among the 8 .*: --4gqARaEJE \(row 8\)",
        ),
        ({"rows": {"--4gqARaEJE": -1}}, r"1 names have no row among the 8 .*: --4gqARaEJE \(row -1\)"),
        (
            {"rows": {"--4gqARaEJE": 1, "--BfvyPmVMo": 1}},
            r"1 names have the row of another one: --BfvyPmVMo; it is not",
        ),
        ({"rows": {"--4gqARaEJE": 1, "dog.wav": 2}}, r"1 of 2 names are not AudioSet's: dog\.wav; with --names exact"),
        ({"rows": {"Y--4gqARaEJE.mp3": 1, "--4gqARaEJE": 2}}, r"clips with several rows in view 0: --4gqARaEJE;"),
        ({"rows": {"--4gqARaEJE": os.system}}, r"fname_to_index\.pkl: would call posix\.system"),
        ({"rows": {}}, r"there are no rows"),
        ({"values": logits(8, 9)}, r"these outputs have 9 classes; name them with --tags FILE"),
        ({"values": logits(8)}, r"logits\.npy: must be a \.npy file of one array of floating-point numbers"),
        ({"values": np.full((8, 527), None)}, r"logits\.npy: no \.npy file that can be read"),
        ({"cut": 100}, r"logits\.npy: no \.npy file that can be read"),
        (
            {"values": np.where(np.arange(8)[:, None] == 7, np.nan, logits(8, 527))},
            "1 clips have .* NaN.*: __2MwJ2uHu0;",
        ),
        ({"format": "sat"}, r"^--from 'sat': must be one of efficientat, ced, dcase24, pretrainedsed"),
        ({"names": "guess"}, r"^--names 'guess': must be audioset or exact"),
        ({"teacher": "PaSST"}, r"^--teacher 'PaSST': a name is a small letter"),
        ({"front_end": "mel"}, r"^--front-end 'mel': must be one of logmel64, .*, waveform"),
        ({"rate": -1}, r"^--rate -1: must be above 0 and at most 192,000"),
        ({"clip_seconds": float("nan")}, r"^--clip-seconds nan: must be above 0"),
        ({"k": 528}, r"columns\.outputs\.k = 528: a row has 527 values"),
        ({"source": "s3://bucket/logits.npy"}, r"must be on this machine"),
        ({"source": "nowhere.npy"}, r"efficientat 'nowhere\.npy': there is no such file or folder"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    file, index, _ = write_efficientat(tmp_path)
    if "values" in change:
        np.save(file, change["values"])
    if "rows" in change:
        index.write_bytes(pickle.dumps(change["rows"]))
    if "cut" in change:
        file.write_bytes(file.read_bytes()[: -change["cut"]])
    known = {"source": str(file), "format": "efficientat", "index": str(index)}
    known |= {key: value for key, value in change.items() if key not in ("values", "rows", "cut")}
    with pytest.raises(ValueError, match=message):
        import_store(ImportRequest(**known), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out/**/*.npy"))


def test_names_are_the_files_own_where_they_are_not_audioset_s(tmp_path, make):
    file, index, rows = write_efficientat(tmp_path, names=("a/dog.wav", "b", "Y--4gqARaEJE.mp3"))
    reader, _ = make("efficientat", file, index=str(index), names="exact")
    assert [*reader.store.clip_ids()] == [["Y--4gqARaEJE.mp3", "a/dog.wav", "b"]]
    assert reader.read("outputs", ["b"], 0).values.tobytes() == rows["b"].tobytes()


def ced(folder: Path) -> dict[tuple[str, int], tuple[list[int], list[float]]]:
    """Two views in files of two processes; one clip in two pieces. Returns what clips of the store must hold."""
    folder.mkdir()
    names = [f"Y{video}.wav" for video in VIDEOS[:4]] + ["Y0-2Onbywljo_380.000_390.000.wav"]
    whole = [(name, 0.0, TEN) for name in names]
    pieces = [("Y00XaUxjGuX8.wav", 10.0, 15.5), ("Y00XaUxjGuX8.wav", 0.0, TEN)]
    parts = {
        **{"ep1_0": whole[:3], "ep1_1": whole[3:] + pieces},
        **{"ep2_0": pieces[:1] + whole[1:3], "ep2_1": whole[3:] + pieces[1:] + whole[:1]},
    }
    ids = dict(zip(names, VIDEOS, strict=False)) | {names[4]: "0-2Onbywljo"}
    held = {}
    for part, clips in parts.items():
        tags, values = write_ced_part(folder, part, clips)
        for (name, start, end), row_tags, row_values in zip(clips, tags, values, strict=True):
            clip_id = ids.get(name) or f"00XaUxjGuX8_{start:g}_{end:g}"
            held[clip_id, int(part[2]) - 1] = sorted(zip(row_tags.tolist(), row_values.tolist(), strict=True))
    return held


def test_ced_s_probabilities_are_what_the_files_hold(tmp_path, make, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIPS_PER_SHARD", 4)
    monkeypatch.setattr(ced_files, "BLOCK", 2)
    held = ced(tmp_path / "chunk_10")
    assert len(held) == 14
    reader, done = make("ced", tmp_path / "chunk_10")
    assert (done["rows"], done["clips"], done["views"], done["shards"]) == (14, 7, 2, 2)
    for (clip_id, view), expected in held.items():
        found = reader.read("outputs", [clip_id], view)
        assert [*zip(found.tags[0].tolist(), found.values[0].tolist(), strict=True)] == expected
    described = reader.store.description
    assert described["columns"]["outputs"] | {"holds": "probabilities", "k": 5} == described["columns"]["outputs"]
    assert described["views"] == {
        **{"version": 0, "augment": {"drawn_by": "CED"}, "clip_seconds": 10.0, "rate": 16_000, "count": 2}
    }
    assert len(described["teachers"][0]["imported_from"]["files"]) == 8
    assert described["teachers"][0]["front_end"] == "ced64"


def test_clips_that_lack_a_view_are_named_and_may_be_left_out(tmp_path, make):
    folder = tmp_path / "chunk_10"
    ced(folder)
    write_ced_part(folder, "ep2_0", [(f"Y{VIDEOS[1]}.wav", 0.0, TEN)])
    lacking = rf"2 clips lack a row in a view: 00XaUxjGuX8_10_15\.5 \(view 1\), {VIDEOS[2]} \(view 1\); add the files"
    with pytest.raises(ValueError, match=lacking):
        make("ced", folder)
    reader, done = make("ced", folder, wanted=set(VIDEOS) - {VIDEOS[2]})
    assert (done["clips"], done["missing"]["count"], done["left_out"]["count"]) == (4, 2, 3)
    assert reader.read("outputs", [VIDEOS[1]], 1).known.all()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("ep4_0", {}, r"no files of virtual epoch 3 \(ep3_\.\.\.\)"),
        ("more_ep1_0", {}, r"logits_ep1_0\.h5 and logits_more_ep1_0\.h5 are the same part"),
        ("ep1_0", {"k": 4}, r"its files hold 4 and 5 values a row"),
        (
            "ep1_0",
            {"topk_indexes": np.zeros((1, 4), "i2")},
            r"topk_values has the shape \(1, 5\), topk_indexes \(1, 4\)",
        ),
        ("ep1_0", {"topk_indexes": np.arange(5)[None]}, r"topk_indexes is of type int64; 16 bits are expected, or 32"),
        ("ep1_0", {"topk_values": np.zeros((1, 5), "i2")}, r"'topk_values' is of type int16 and shape \(1, 5\)"),
        ("ep1_0", {"topk_values": logits(2, 5), "topk_indexes": np.zeros((2, 5), "i2")}, r"1 rows, and logits_ep1_0"),
        (
            "ep1_0",
            {"topk_indexes": np.array([[0, 1, 2, 3, 527]], "i2")},
            r"1 clips do not have 5 different tags of 527",
        ),
        ("ep1_0", {"topk_values": np.array([[1, 0.5, 0, 0, -0.1]], "f2")}, r"1 clips have a value outside of 0 to 1"),
        ("ep1_0", {"topk_values": np.array([[1, 0.5, np.nan, 0, 0]], "f2")}, r"1 clips have a value that is NaN"),
    ],
)
def test_ced_s_files_that_do_not_fit_are_refused(tmp_path, part, changes, message):
    clip = [(f"Y{VIDEOS[0]}.wav", 0.0, TEN)]
    for given in ("ep1_0", "ep2_0"):
        write_ced_part(tmp_path, given, clip)
    write_ced_part(tmp_path, part, clip, **changes)
    with pytest.raises(ValueError, match=message):
        import_store(ImportRequest(str(tmp_path), "ced"), str(tmp_path / "out"))


def test_ced_s_files_that_are_damaged_or_missing_are_named(tmp_path):
    request, out = ImportRequest(str(tmp_path), "ced"), str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no files such as logits_ep1_0\.h5"):
        import_store(request, out)
    write_ced_part(tmp_path, "ep1_0", [(f"Y{VIDEOS[0]}.wav", 0.0, TEN)])
    h5, table = tmp_path / "logits_ep1_0.h5", tmp_path / "logits_ep1_0.parquet"
    content = table.read_bytes()
    for wrong in (content[:-20], b""):
        table.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"logits_ep1_0\.parquet: no readable table of clips"):
            import_store(request, out)
    table.unlink()
    with pytest.raises(ValueError, match=r"logits_ep1_0\.h5: without logits_ep1_0\.parquet beside it"):
        import_store(request, out)
    table.write_bytes(content)
    with h5py.File(h5, "a") as file:
        del file["topk_values"]
    with pytest.raises(ValueError, match=r"has no data set 'topk_values'; it has seeds, topk_indexes"):
        import_store(request, out)
    h5.write_bytes(h5.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"logits_ep1_0\.h5: no HDF5 file that can be read"):
        import_store(request, out)


def test_pretrainedsed_s_frames_are_what_the_file_holds(tmp_path, make, monkeypatch):
    names = [f"Y{video}" for video in VIDEOS]
    rows = write_pretrainedsed(tmp_path / "ensemble.hdf5", names, tags=6, frames=25)
    (tmp_path / "tags.csv").write_text("index,mid,display_name\n" + "".join(f'{n},/m/{n},"T, {n}"\n' for n in range(6)))
    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    reader, done = make("pretrainedsed", tmp_path / "ensemble.hdf5", tags=str(tmp_path / "tags.csv"))
    assert (done["rows"], done["views"], done["shards"]) == (7, 1, 4)  # 300 bytes a row, so 2 clips in a file
    found = reader.read("frames", VIDEOS, 0)
    assert found.values.tobytes() == np.stack([rows[name] for name in names]).tobytes()
    described = reader.store.description
    assert described["columns"]["frames"]["frames"] == {"count": 25, "hop_seconds": 0.4, "first_seconds": 0.2}
    assert described["views"]["augment"] == {"drawn_by": "PretrainedSED"}
    assert described["tags"] == [f"T, {number}" for number in range(6)]
    with h5py.File(tmp_path / "ensemble.hdf5", "a") as file:
        del file["filenames"]
        file["filenames"] = np.array(names[:-1], "S12")
    with pytest.raises(ValueError, match=r"6 filenames, and strong_logits of shape \(7, 6, 25\)"):
        make("pretrainedsed", tmp_path / "ensemble.hdf5")


def test_rows_that_hdf5_would_give_as_zeros_are_refused(tmp_path, make):
    """In another file, never written, or damaged: HDF5 gives zeros for the first two, which would teach p = 0.5."""
    source, names = tmp_path / "ensemble.hdf5", [f"Y{video}" for video in VIDEOS]
    write_pretrainedsed(source, names, tags=6, frames=25)
    virtual, started = tmp_path / "virtual.hdf5", tmp_path / "started.hdf5"
    layout = h5py.VirtualLayout(shape=(7, 6, 25), dtype="f2")
    layout[:] = h5py.VirtualSource(str(source), "strong_logits", shape=(7, 6, 25))
    with h5py.File(virtual, "w") as file:
        file["filenames"] = np.array(names, "S12")
        file.create_virtual_dataset("strong_logits", layout)
    with h5py.File(started, "w") as file:
        file["filenames"] = np.array(names, "S12")
        rows = file.create_dataset("strong_logits", (7, 6, 25), "f2", chunks=(1, 6, 25), compression="gzip")
        rows[:3] = logits(3, 6, 25)
    for file, message in ((virtual, "lies in other files"), (started, "parts of 'strong_logits' were never written")):
        with pytest.raises(ValueError, match=rf"{file.name}: .*{message}"):
            make("pretrainedsed", file)
    with h5py.File(started, "a") as file:
        file["strong_logits"][:] = logits(7, 6, 25)
        place = file["strong_logits"].id.get_chunk_info(5).byte_offset
    content = bytearray(started.read_bytes())
    content[place : place + 20] = bytes(20)
    started.write_bytes(content)
    (tmp_path / "tags.txt").write_text("".join(f"t{number}\n" for number in range(6)))
    with pytest.raises(ValueError, match=r"started\.hdf5: 'strong_logits' cannot be read .*; copy the file again"):
        make("pretrainedsed", started, tags=str(tmp_path / "tags.txt"))


def test_dcase_s_rows_are_time_major_and_its_names_exact(tmp_path, make):
    """(N, 156, 27) fp32 in the file; the store has a row of tags, each over frames of 64 ms."""
    names = ["Y1_00_mp3", "maestro-a.3", "3"]
    values = logits(3, 156, 27).astype(np.float32) + np.float32(1e-4)
    with h5py.File(tmp_path / "strong_train.hdf5", "w") as file:
        file.create_dataset("strong_logits", data=values)
        file.create_dataset("filenames", data=names)
    (tmp_path / "tags.txt").write_text("".join(f"t{number}\n" for number in range(27)))
    reader, done = make("dcase24", tmp_path / "strong_train.hdf5", tags=str(tmp_path / "tags.txt"))
    assert (done["rows"], done["views"]) == (3, 1)
    found = reader.read("frames", names, 0).values
    assert found.shape == (3, 27, 156)
    assert np.array_equal(found, values.swapaxes(1, 2).astype(np.float16))
    described = reader.store.description
    assert described["columns"]["frames"]["frames"] == {"count": 156, "hop_seconds": 0.064, "first_seconds": 0.032}
    assert described["views"]["augment"] == {"drawn_by": "cpjku_dcase24"}
    with pytest.raises(ValueError, match=r"a file of cpjku_dcase24 holds the clips' names itself; leave it out"):
        make("dcase24", tmp_path / "strong_train.hdf5", index=str(tmp_path / "tags.txt"))


def test_the_command_line_imports_what_a_table_names(tmp_path, antiphon):
    file, index, rows = write_efficientat(tmp_path)
    (tmp_path / "mine.csv").write_text(f"clip_id,path\n{VIDEOS[2]},a.wav\n{VIDEOS[0]},b.wav\nnone,c.wav\n")
    (tmp_path / "mine.toml").write_text(
        f'extends = "demo"\n[data]\nformat = "manifest"\nmanifest = "{tmp_path}/mine.csv"\nroot = "{tmp_path}"\n'
    )
    command = ("store", "import", file, "--from", "efficientat", "--index", index)
    done = antiphon(*command, "--out", tmp_path / "out", "--clips", tmp_path / "mine.csv", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["rows"], found["shards"], found["missing"]) == (2, 1, {"count": 1, "first": ["none"]})
    assert f"warning: 1 clips of {tmp_path}/mine.csv have no rows: none" in done.err
    assert "warning: 5 clips with rows are not wanted: ---1_cCGK4M, --4gqARaEJE, -0RWZT-miFs and 2 more" in done.err
    reader = stores.reader(str(tmp_path / "out"), tmp_path)
    assert reader.read("outputs", [VIDEOS[2]], 0).values.tobytes() == rows[VIDEOS[2]].tobytes()
    settings = ("--set", "models.vit.arch.depth=1")
    again = antiphon(*command, "--out", tmp_path / "same", "--clips", tmp_path / "mine.toml", *settings)
    assert "2 rows of 2 clips in 1 views" in again.out
    assert content_of(str(tmp_path / "same")) == content_of(str(tmp_path / "out"))
    told = antiphon("store", "info", tmp_path / "out").out
    assert "views of 10 s at 32000 Hz, drawn elsewhere: no augmentation" in told
    assert "teacher efficientat: imported from files of efficientat, " in told
    for more, message in (
        (("--clips", index), "neither a .toml or .json file nor shipped"),
        (("--set", "data.root=x"), "--set data.root=x: changes the recipe of --clips"),
        (("--clips", file.with_suffix(".csv")), "logits.csv: no such file"),
    ):
        wrong = antiphon(*command, "--out", tmp_path / "wrong", *more)
        assert (wrong.code, message in wrong.err) == (2, True), wrong.err


def test_h5py_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "logits_ep1_0.h5").write_bytes(b"")
    (tmp_path / "logits_ep1_0.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"HDF5 files need h5py; pip install 'antiphon\[hdf5\]'"):
        import_store(ImportRequest(str(tmp_path), "ced"), str(tmp_path / "out"))
