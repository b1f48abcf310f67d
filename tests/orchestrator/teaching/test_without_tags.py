"""A teacher without tags: an ONNX file that gives embeddings only, its store, and a student of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from orchestrator.recipes.loader import load_teach_recipe
from orchestrator.storage import object_store
from orchestrator.stores.merge import merge_stores
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from orchestrator.training.driver import check_recipe_data
from tests import small, stores
from workloads.config.recipe import Recipe
from workloads.models.front_end import build_front_end
from workloads.train import loop

pytest.importorskip("onnx")
from tests.workloads.teaching.test_onnx_teachers import write

AUGMENT = ["augment.gain_db=6.0", "augment.mask_mel=0.2"]
CLIPS = ["data.synthetic_clips=100", "data.clip_seconds=1.0"]
EDGE = "student='student', carries='embedding', loss='cosine', weight=1.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vector.onnx`, whose output `vector` is the mean of a log-mel over time."""
    folder = tmp_path_factory.mktemp("without-tags")
    write(folder / "vector.onnx", ["clips", 64, "frames"], axis=2, outputs=("vector",))
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path) -> list[str]:
    """Of a store of that teacher alone."""
    own = "input='logmel', front_end={kind='logmel64'}, embedding='vector'"
    teacher = f"teachers={{wave={{uri='{folder}/vector.onnx', {own}}}}}"
    embeddings = ["teach.logits=false", "teach.embedding=true", "teach.views=2", "teach.clips_per_shard=32"]
    return [*CLIPS, f"data.cache={folder}/clips", *AUGMENT, *embeddings, teacher]


@pytest.fixture(scope="module")
def store(folder: Path, settings: list[str]) -> Path:
    request = TeachRequest(load_teach_recipe("teach-demo", settings), str(folder / "store"), local=True)
    done = fill_store(request, on_shard=lambda *_: None, warn=lambda line: None)
    assert (done["status"], done["rows"]) == ("done", 200)
    return folder / "store"


@pytest.fixture
def student(tiny) -> Callable[..., Recipe]:
    def make(edge: str, *own: str) -> Recipe:
        schedule = "schedule={kind='mutual', burn_in=0, steps=60}"
        models = f"models={{student={{arch={small.VIT}}}}}"
        return tiny("demo", *CLIPS, schedule, models, *AUGMENT, f"edges=[{{{edge}}}]", *own)

    return make


def test_rows_are_what_the_file_says_and_a_student_learns_them(store, student, start, tmp_path):
    recipe = student(f"teacher='store:{store}', {EDGE}")
    run = start(recipe)
    reader, shard = stores.reader(str(store), tmp_path), run.batches.shard(0, 0)
    rows = reader.read("embedding", shard.clip_ids, [0] * len(shard.clip_ids)).values
    mel_BMF = shard.mel(build_front_end("logmel64", clip_rate=16_000))
    torch.testing.assert_close(torch.from_numpy(rows).float(), mel_BMF.mean(dim=2), rtol=2e-3, atol=2e-3)
    assert loop(run) == "done"
    events = [json.loads(line) for line in (run.session.work_dir / "events.jsonl").read_text().splitlines()]
    values = [record["values"] for record in events if record["kind"] == "metrics"]
    key = "store-to-student-embedding/kd_loss"
    found = [step[key] for step in values if key in step]
    assert len(found) == 60
    assert found[-1] < 0.6 * found[0]


def test_an_edge_that_wants_logits_is_refused_with_what_to_change(store, student):
    message = (
        r"none of its columns \(embedding\) holds logits or probabilities of whole clips, .* its embeddings teach with "
        "carries = 'embedding' and loss = 'cosine' or 'mse'"
    )
    with pytest.raises(ValueError, match=message):
        check_recipe_data(student(f"teacher='store:{store}', student='student'"))


def test_the_tools_take_a_store_without_outputs(store, folder, settings, antiphon, tmp_path):
    told = antiphon("store", "info", store, "--json")
    found = json.loads(told.out)
    assert (told.code, found["tags"], found["labels"], found["kind"], found["k"]) == (0, 0, None, None, None)
    assert found["rows"] == 200
    lines = antiphon("store", "info", store).out
    assert "no tags" in lines
    assert "column embedding: embedding, all 64, float16, of wave" in lines
    assert antiphon("store", "verify", store).code == 0
    recipe = folder / "mine.toml"
    recipe.write_text('extends = "teach-demo"\n')
    given = [word for setting in settings for word in ("--set", setting)]
    heard = antiphon("store", "verify", store, "--hear", recipe, "--clips", "3", *given, "--json")
    assert (heard.code, json.loads(heard.out)["heard"]["differing"]) == (0, []), heard.err
    assert antiphon("store", "export", store, tmp_path / "table.parquet").code == 0
    table = pyarrow.parquet.read_table(tmp_path / "table.parquet")
    assert (table.num_rows, table.column_names) == (200, ["clip_id", "view", "embedding"])


def test_a_merged_store_of_embeddings_is_the_one_that_is_made_at_once(tmp_path):
    described = stores.about(embedding=5)
    for key in ("labels", "tags"):
        del described[key]
    described |= {"tags": [], "columns": {"embedding": described["columns"]["embedding"]}}
    clips = [f"clip-{number:02}" for number in range(10)]
    for name, some in (("a", clips[::2]), ("b", clips[1::2]), ("whole", clips)):
        stores.fill(str(tmp_path / name), described, some)
    merge_stores([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "merged"))
    merged, whole = (
        {
            path: object_store.get_bytes(f"{tmp_path}/{name}/{path}")
            for path in object_store.file_sizes(str(tmp_path / name))
        }
        for name in ("merged", "whole")
    )
    assert merged == whole
    with pytest.raises(ValueError, match="labels: belongs to a store with tags, and to no other"):
        stores.fill(str(tmp_path / "labels"), described | {"labels": "multi"}, clips)
