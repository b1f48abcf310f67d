"""A store of profiles as a teacher: a student learns when to listen from it as from the teacher that filled it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from orchestrator.recipes.loader import load_recipe, load_teach_recipe
from orchestrator.stores.merge import merge_stores
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from orchestrator.teaching.rehear import hear_again
from tests import stores
from tests.orchestrator.artifacts.test_tag import publish
from tests.packs import TAGS, write_clips
from tests.trained_runs import grid, trained, values
from workloads.config.architectures import MN, ViT, Wav2Vec2
from workloads.config.edge import Edge
from workloads.config.recipe import FrontEnd, Model
from workloads.data.shard import Mixture, Shard, ViewKey
from workloads.distill.stored_teacher import StoredTeacher
from workloads.models.profiles import EPSILON, time_grid
from workloads.models.tagger import build_tagger

VIEWS = "augment={roll=0.5, gain_db=6.0, mask_time=0.3, mask_mel=0.2}"
STEPS = 6  # of the first epoch, whose view the store holds
TEACHERS = {
    "vit": Model(arch=ViT(family="vit", dim=16, depth=2, heads=2, patch=8, stride=8)),
    "cnn": Model(arch=MN(family="mn", width=0.1)),
    "speech": Model(
        arch=Wav2Vec2(family="wav2vec2", dim=32, depth=2, heads=2, channels=16),
        front_end=FrontEnd(kind="waveform16k_norm"),
    ),
}


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("audio"), 80, seconds=(0.3, 1.2))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published taggers with drawn weights, a Transformer and a CNN, for the clips' tags; attention is not even."""
    folder = tmp_path_factory.mktemp("teachers")
    about: dict[str, Any] = {"tags": tuple(sorted(TAGS)), "labels": "single", "clip_seconds": 1.0, "clip_rate": 16_000}
    for name, model in TEACHERS.items():
        tagger = build_tagger(model, name=name, seed=7, **about).eval()
        torch.manual_seed(2)
        for key, parameter in tagger.backbone.named_parameters():
            if key.endswith(("qkv.weight", "q_proj.weight", "k_proj.weight")):
                torch.nn.init.normal_(parameter, std=1.0)
        publish(tagger, folder / name)
    return folder


def teach_recipe(folder: Path, teachers: Path, *names: str, audio: list[str], settings: tuple[str, ...] = ()) -> Any:
    uris = ", ".join(f"{name}={{uri='{teachers}/{name}'}}" for name in names)
    own = ["data.clip_seconds=1.0", f"data.cache={folder}/clips", "teach.views=1", "teach.threads=1"]
    return load_teach_recipe(
        "teach-demo", [*audio, *own, VIEWS, "teach.temporal=true", f"teachers={{{uris}}}", *settings]
    )


def fill(recipe: Any, uri: Path) -> str:
    done = fill_store(TeachRequest(recipe, str(uri), local=True), on_shard=lambda *_: None, warn=lambda line: None)
    assert done["status"] == "done"
    return str(uri)


def student_recipe(tiny: Any, tmp_path: Path, audio: list[str], *settings: str) -> Any:
    student = "models.student={arch={family='vit', dim=16, depth=1, heads=2, patch=8, stride=4}}"
    return tiny("demo", *audio, f"data.cache={tmp_path}/clips", "models={}", student, *settings)


def losses(run: Any, key: str) -> list[float]:
    trained(run, "student")
    return [step[key] for step in values(run) if key in step]


@pytest.mark.parametrize("view", ["same", "clean"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("vit", "gate='always'"), ("cnn", "gate='entropy', align='linear'"), ("speech", "gate='always'")],
)
def test_the_loss_of_a_stored_teacher_is_that_of_the_live_one(
    name: str, settings: str, view: str, audio: list[str], teachers: Path, tmp_path: Path, tiny: Any, start: Any
) -> None:
    """Clips of unequal length, whose padding counts for nothing. `clean` rows, of views that differ from the clips in
    nothing: the live teacher, which always hears what the student hears, says the same."""
    views = VIEWS if view == "same" else "augment={}"
    uri = fill(teach_recipe(tmp_path, teachers, name, audio=audio, settings=(views,)), tmp_path / "store")
    edge = f"student='student', carries='temporal', weight=3.0, {settings}"
    arch, kind = TEACHERS[name].arch, TEACHERS[name].front_end.kind
    values = ", ".join(f"{key}={json.dumps(value)}" for key, value in asdict(arch).items())
    teacher = f"{{arch={{{values}}}, front_end={{kind='{kind}'}}, init='{teachers}/{name}'}}"
    live = student_recipe(
        tiny,
        *(tmp_path, audio, views),
        f"models.teacher={teacher}",
        f"schedule={{kind='one_way', teachers=['teacher'], teacher_steps=0, steps={STEPS}}}",
        f"edges=[{{teacher='teacher', {edge}}}]",
    )
    stored = student_recipe(
        tiny,
        *(tmp_path, audio, views),
        f"schedule={{kind='mutual', burn_in=0, steps={STEPS}}}",
        f"edges=[{{teacher='store:{uri}', view='{view}', {edge}}}]",
    )
    from_teacher = losses(start(live), "teacher-to-student-temporal/kd_loss")
    from_store = losses(start(stored), "store-to-student-temporal/kd_loss")
    assert len(from_store) == STEPS
    assert min(from_teacher) > 1e-3, "there is something to learn"
    torch.testing.assert_close(torch.tensor(from_store), torch.tensor(from_teacher), rtol=2e-3, atol=0)


def test_rows_are_profiles_on_the_steps_that_the_store_names(audio: list[str], teachers: Path, tmp_path: Path) -> None:
    """Of two teachers each has a column of its own; what they say again agrees within a step of fp16."""
    recipe = teach_recipe(tmp_path, teachers, "vit", "cnn", audio=audio)
    uri = fill(recipe, tmp_path / "store")
    reader = stores.reader(uri, tmp_path)
    columns = reader.store.description["columns"]
    assert set(columns) == {"outputs", "temporal.vit", "temporal.cnn"}
    for name in ("vit", "cnn"):
        about: dict[str, Any] = {"tags": ("a",), "labels": "single", "clip_seconds": 1.0, "clip_rate": 16_000}
        tagger = build_tagger(TEACHERS[name], name=name, seed=0, **about)
        column = columns[f"temporal.{name}"]
        steps = time_grid(tagger, column["frames"]["count"])
        middle = pytest.approx(steps.first + steps.step / 2)
        assert column["frames"] == {"count": steps.count, "hop_seconds": steps.step, "first_seconds": middle}
        assert (column["holds"], column["width"]) == ("profile", 1)
        p_B1P = reader.read(f"temporal.{name}", ["clip 000", "clip 001"], 0).values.astype(np.float64)
        assert p_B1P.sum(2).tolist() == [[pytest.approx(1, abs=1e-3)]] * 2
        assert p_B1P.min() >= EPSILON / 2
        assert p_B1P.std() > 1e-3, "not even"
    found = hear_again(recipe, uri, clips=6, storage="runs")
    assert found.differing == ()
    assert found.largest["temporal.vit"] < 2.0**-11


def teacher_of(folder: Path, rows_BP: list[list[float]], **edge: Any) -> StoredTeacher:
    """The teacher of a store with these profiles of clips "0", "1" and so on, each of 100 samples in 1 s."""
    frames = {"count": len(rows_BP[0]), "hop_seconds": 1 / len(rows_BP[0]), "first_seconds": 0.5 / len(rows_BP[0])}
    column = {"holds": "profile", "teachers": ["cnn"], "width": 1, "dtype": "float16", "layout": "dense"}
    views = {"version": 1, "augment": {"view_seed": 3}, "clip_seconds": 1.0, "rate": 100, "count": 1}
    uri = str(folder / "store")
    describes = stores.about(tags=2, views=1, columns={"temporal": column | {"frames": frames}}) | {"views": views}
    clip_ids = [str(number) for number in range(len(rows_BP))]
    stores.fill_rows(uri, describes, clip_ids, {"temporal": np.array(rows_BP, np.float32)[:, None, None]})
    own = Edge(teacher=f"store:{uri}", student="cnn", carries="temporal", **edge)
    return StoredTeacher(own, stores.reader(uri, folder), "temporal", np.array([]), "multi", 1)


def shard_of(clips: int, **fields: Any) -> Shard:
    keys = tuple(ViewKey(str(number), 0, 0) for number in range(clips))
    nothing = torch.zeros(clips, 2)
    return Shard(keys, torch.zeros(clips, 100), nothing, nothing, nothing, torch.zeros(clips, 4), **fields)


@pytest.mark.parametrize("view", ["same", "clean"])
def test_profiles_of_clips_that_nobody_rolled_are_rolled_and_mixed_with_them(view: str, tmp_path: Path) -> None:
    rows_BP = [[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]
    teacher = teacher_of(tmp_path, rows_BP, view=view)
    assert teacher.grid == grid(4)
    shard = shard_of(2, shift_B=torch.tensor([25, 50]), mixture=Mixture(torch.tensor([0.5, 1.0]), torch.tensor([1, 1])))
    expected = (
        [[0.25, 0.625, 0.125, 0.0], [0, 1, 0, 0]] if view == "same" else [[0.0, 0.25, 0.125, 0.625], [0, 0, 0, 1]]
    )
    assert teacher.outputs(shard, {})["temporal"].tolist() == expected


def test_a_store_without_profiles_is_refused_before_the_first_step(
    audio: list[str], teachers: Path, tmp_path: Path, tiny: Any, start: Any
) -> None:
    recipe = teach_recipe(tmp_path, teachers, "vit", audio=audio, settings=("teach.temporal=false",))
    uri = fill(recipe, tmp_path / "store")
    fields = f"teacher='store:{uri}', student='student', carries='temporal'"
    schedule = "schedule={kind='mutual', burn_in=0, steps=2}"
    message = (
        r"none of its columns \(outputs\) holds temporal profiles, which carries = 'temporal' needs; fill a store with "
        "teach.temporal = true"
    )
    with pytest.raises(ValueError, match=message):
        start(student_recipe(tiny, tmp_path, audio, VIEWS, schedule, f"edges=[{{{fields}}}]"))


def test_an_onnx_file_has_no_profile() -> None:
    with pytest.raises(ValueError, match=r"teach.temporal = True: teachers.other is an ONNX file"):
        load_teach_recipe("teach-demo", ["teach.temporal=true", "teachers={other={uri='other.onnx'}}"])


def test_the_store_s_commands_know_profiles(audio: list[str], teachers: Path, tmp_path: Path, antiphon: Any) -> None:
    """info, verify, export; and two halves merged are the whole, byte for byte."""
    recipe = teach_recipe(tmp_path, teachers, "vit", audio=audio)
    uri = fill(recipe, tmp_path / "whole")
    done = antiphon("store", "info", uri)
    assert "column temporal: profile, 12 steps of 0.08 s, float16, of vit" in done.out
    assert antiphon("store", "verify", uri).code == 0
    assert antiphon("store", "export", uri, tmp_path / "table.parquet").code == 0
    table = pyarrow.parquet.read_table(tmp_path / "table.parquet").to_pylist()
    reader = stores.reader(uri, tmp_path)
    for row in table[:3]:
        assert row["temporal"] == reader.read("temporal", [row["clip_id"]], row["view"]).values[0, 0].tolist()
    described = dict(reader.store.description)
    clip_ids = [clip_id for batch in reader.store.clip_ids() for clip_id in batch]
    rows = {name: reader.read(name, clip_ids, 0).values for name in ("outputs", "temporal")}
    halves = []
    for number in (0, 1):
        half = {name: of_all[number::2][:, None] for name, of_all in rows.items()}
        halves.append(str(tmp_path / f"half{number}"))
        about = {key: described[key] for key in ("teachers", "tags", "labels", "views", "columns")}
        stores.fill_rows(halves[-1], about, clip_ids[number::2], half, per_shard=512)
    merge_stores(halves, str(tmp_path / "merged"))
    merged = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert merged["shards"] == json.loads((tmp_path / "whole" / "manifest.json").read_text())["shards"]


def test_a_view_that_says_nothing_of_when_is_refused() -> None:
    for fields, message in (
        ("view='other'", "profiles of other views"),
        ("missing='labels'", "is for edges that carry"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe("one-way", [f"edges=[{{teacher='store:x', student='vit', carries='temporal', {fields}}}]"])
