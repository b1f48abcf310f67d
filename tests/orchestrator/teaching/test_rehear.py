"""Clips of a store are heard again: what differs is named, what cannot be heard again is refused."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.writer import begin_store, finish_store, write_shard
from tests import stores
from tests.teachers import CLIPS
from workloads.stores.description import OF_CLIPS
from workloads.stores.store import open_store
from workloads.stores.topk import TopK

IMPORTED = {"version": 0, "augment": {}, "clip_seconds": 10.0, "rate": 32_000, "count": 1}


def changed_copy(store: str, out: str, column: str, change: Callable[[Any, Any], None]) -> None:
    """A store with the rows of another one, those of a column as `change` leaves values_VC and tags_VJ of CLIPS[3]."""
    source = open_store(store, FsspecFiles())
    about: Any = {key: value for key, value in source.description.items() if key not in OF_CLIPS}
    description, plan = begin_store(out, about, CLIPS, clips_per_shard=4)
    for shard in plan:
        outputs: dict[str, Any] = {}
        for name, codec in source.codecs.items():
            raw = source.read_shard(name, shard.number)
            values, tags = codec.values(codec.unpack(raw.reshape(-1, codec.row_bytes)))
            values_NVC = values.reshape(shard.views, len(shard.clip_ids), -1).swapaxes(0, 1).copy()
            tags_NVJ = (
                None if tags is None else tags.reshape(shard.views, len(shard.clip_ids), -1).swapaxes(0, 1).copy()
            )
            if name == column and CLIPS[3] in shard.clip_ids:
                place = shard.clip_ids.index(CLIPS[3])
                change(values_NVC[place], None if tags_NVJ is None else tags_NVJ[place])
            outputs[name] = values_NVC if tags_NVJ is None else TopK(tags_NVJ, values_NVC)
        write_shard(out, description, shard, outputs)
    finish_store(out, description, plan)


@pytest.mark.parametrize("settings", [("teach.k=2",), ("teach.holds=probabilities", "teach.embedding=true")])
def test_a_store_is_heard_again_and_a_clip_that_differs_is_named(folder, teach, tmp_path, settings, antiphon):
    teach(tmp_path / "store", *settings)
    words = [word for setting in settings for word in ("--set", setting)]
    hear = ["--hear", folder / "mine.toml", *words, "--json"]
    whole = antiphon("store", "verify", tmp_path / "store", *hear, "--clips", 100)
    assert whole.code == 0, whole.out
    heard = json.loads(whole.out)["heard"]
    assert (heard["clips"], heard["rows"], heard["differing"]) == (11, 33, [])
    assert heard["largest"]["outputs"] < 0.002

    def shift(values: Any, tags: Any) -> None:
        values[2] += np.float16(0.01)

    def keep_the_least(values: Any, tags: Any) -> None:
        """Other tags than the two with the largest values, each with the value that it does have."""
        whole = dense.read("outputs", [CLIPS[3]], 1).values[0]
        tags[1] = [tag for tag in range(5) if tag not in tags[1]][:2]
        values[1] = whole[tags[1]]

    teach(tmp_path / "dense")
    dense = stores.reader(str(tmp_path / "dense"), tmp_path)
    column = "embedding.vit" if "teach.embedding=true" in settings else "outputs"
    changes = [(column, shift), ("outputs", keep_the_least if column == "outputs" else shift)]
    for number, (name, change) in enumerate(changes):
        out = tmp_path / f"changed-{number}"
        changed_copy(str(tmp_path / "store"), str(out), name, change)
        found = antiphon("store", "verify", out, *hear, "--clips", 11)
        report = json.loads(found.out)
        assert (found.code, report["damaged"], report["heard"]["differing"]) == (1, [], [CLIPS[3]]), found.err
        if change is shift:
            assert report["heard"]["largest"][name] == pytest.approx(0.01, rel=0.1)


def test_what_cannot_be_heard_again_is_refused(folder, teach, tmp_path, antiphon):
    teach(tmp_path / "store")
    told = antiphon("store", "verify", tmp_path / "store", "--hear", folder / "mine.toml", "--clips", 2)
    assert (told.code, "2 clips heard again, 6 rows: largest difference " in told.out) == (0, True)
    lines = (folder / "clips.csv").read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:5]) + "\n")
    stores.fill(str(tmp_path / "imported"), stores.about(views=1) | {"views": IMPORTED}, ["a"])
    for store, more, message in (
        ("store", ["--set", "augment.roll=0.4"], "views.augment.roll is 0.5, expected 0.4"),
        ("store", ["--set", "teachers.cnn.uri=" + str(folder / "vit")], "teachers[0].weights_sha256 is"),
        ("store", ["--set", f"data.manifest={tmp_path}/fewer.csv"], "the recipe's data does not hold 8 clips"),
        ("store", ["--clips", "-1"], "--clips -1: must be 1 or more"),
        ("imported", [], "was imported, another program drew its views"),
    ):
        found = antiphon("store", "verify", tmp_path / store, "--hear", folder / "mine.toml", *more)
        assert (found.code, message in found.err) == (2, True), found.err
    assert "belong to --hear RECIPE" in antiphon("store", "verify", tmp_path / "store", "--clips", 3).err
