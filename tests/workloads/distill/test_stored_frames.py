"""A store of frames as a teacher: rows in time, rolled and mixed with the clips, and what a student makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.recipes.loader import load_recipe, load_teach_recipe
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.writer import begin_store, finish_store, unwritten, write_shard
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import TeachRequest
from orchestrator.teaching.rehear import _differences, hear_again
from tests import stores
from tests.orchestrator.artifacts.test_tag import publish
from tests.workloads.distill.test_frame_edges import shard_of, trained, values
from workloads.config.architectures import MN, FrameMN, ViT
from workloads.config.edge import Edge
from workloads.config.recipe import Model
from workloads.data.shard import Mixture, ViewKey
from workloads.data.synthetic import render, synthetic_clips
from workloads.distill.stored_teacher import StoredTeacher
from workloads.evaluate.predict import load_tagger
from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import build_tagger
from workloads.stores.reader import StoreReader

TAGS, FRAMES, HOP = 6, 5, 0.2
CLIPS = ["0", "1", "2"]
ROWS = np.random.default_rng(0).normal(-2, 3, (3, 1, TAGS, FRAMES)).astype(np.float16)


def stored(
    folder: Path, *, column: dict[str, Any] | None = None, about: dict[str, Any] | None = None, **edge: Any
) -> Any:
    """The teacher of a store with these rows; its clips last 1 s, and frame k lasts from 0.2 k to 0.2 k + 0.2 s."""
    frames = {"count": FRAMES, "hop_seconds": HOP, "first_seconds": HOP / 2}
    whole: dict[str, Any] = {"holds": "logits", "teachers": ["cnn"], "width": TAGS, "dtype": "float16"}
    whole |= {"layout": "dense", "frames": frames} | (column or {})
    views = {"version": 1, "augment": {"view_seed": 3}, "clip_seconds": 1.0, "rate": 100, "count": 1} | (about or {})
    uri = str(folder / "store")
    describes = stores.about(tags=TAGS, views=1, columns={"frames": whole}, labels="multi") | {"views": views}
    description, plan = begin_store(uri, describes, CLIPS, clips_per_shard=3)
    (shard,) = unwritten(uri, description, plan)
    write_shard(uri, description, shard, {"frames": ROWS.astype(np.float32)})
    finish_store(uri, description, plan)
    reader = StoreReader(uri, FsspecFiles(), copies=folder / "copies")
    own = Edge(teacher=f"store:{uri}", student="cnn", carries="frames", **edge)
    return StoredTeacher(own, reader, "frames", np.arange(TAGS), "multi", 1)


def frames_of(teacher: StoredTeacher, clips: int = 3, **fields: Any) -> Tensor:
    shard = shard_of(clips, **fields)
    shard.keys = tuple(ViewKey(name, 0, 0) for name in CLIPS[:clips])
    return teacher.outputs(shard, {})["frames"]


def test_rows_are_logits_in_time_in_the_order_of_the_run_s_tags(tmp_path: Path) -> None:
    teacher = stored(tmp_path)
    teacher.place_C = np.array([4, 0, 1])
    expected = torch.from_numpy(ROWS[:, 0, [4, 0, 1]].astype(np.float32)).transpose(1, 2)
    torch.testing.assert_close(frames_of(teacher), expected, rtol=1e-3, atol=1e-4)
    assert teacher.grid == TimeGrid(0.0, HOP, FRAMES)


@pytest.mark.parametrize(("view", "rolls"), [("same", False), ("clean", True), ("other", True)])
def test_rows_of_clips_that_nobody_rolled_are_rolled_and_mixed_with_the_clips(
    view: str, rolls: bool, tmp_path: Path
) -> None:
    """Each clip by its own shift, then mixed as probabilities; rows of the same view were rolled already."""
    shift_B, mixture = torch.tensor([20, 60, 0]), Mixture(torch.tensor([0.7, 1.0, 0.6]), torch.tensor([1, 1, 0]))
    found = frames_of(stored(tmp_path, view=view, temperature=2.0), shift_B=shift_B, mixture=mixture)
    p_BPC = (torch.from_numpy(ROWS[:, 0].astype(np.float32)).transpose(1, 2) / 2).sigmoid()
    if rolls:
        p_BPC = torch.stack([p_PC.roll(shift // 20, 0) for p_PC, shift in zip(p_BPC, shift_B.tolist(), strict=True)])
    torch.testing.assert_close((found / 2).sigmoid(), mixture.of(p_BPC), rtol=0, atol=1e-5)


def test_of_the_smaller_layout_the_kept_tags_come_back_within_its_step(tmp_path: Path) -> None:
    """20-class uint8 of reference/frames.md 7.3, here 3 of 6: the tags of the largest maxima, in 255 steps."""
    column = {"layout": "topk", "k": 3, "dtype": "uint8"}
    found = frames_of(stored(tmp_path, column=column, fill="last_half")).transpose(1, 2)
    whole = torch.from_numpy(ROWS[:, 0].astype(np.float32))
    for found_CP, whole_CP in zip(found, whole, strict=True):
        kept = whole_CP.amax(1).topk(3).indices
        step = 24 / 255
        torch.testing.assert_close(found_CP[kept], whole_CP[kept].clamp(-12, 12), rtol=0, atol=step / 2 + 5e-3)
        others = [tag for tag in range(TAGS) if tag not in kept.tolist()]
        least_P = found_CP[kept].sigmoid().amin(0)
        torch.testing.assert_close(found_CP[others].sigmoid(), (least_P / 2).expand(3, FRAMES), rtol=1e-4, atol=0)
    row_bytes = stores.reader(str(tmp_path / "store"), tmp_path).store.codec("frames").row_bytes
    assert row_bytes == 3 * FRAMES + 1, "3 tags of 6 are one of 20 choices"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published taggers with drawn weights that know the demo's tags: two with logits in time, and one without."""
    folder = tmp_path_factory.mktemp("teachers")
    tags = tuple(sorted({tag for clip in synthetic_clips(load_recipe("demo").data) for tag in clip.tags}))
    archs = {
        "frames": FrameMN(family="frame_mn", width=0.1),
        "vit": ViT(family="vit", dim=16, depth=1, heads=2, patch=8, stride=8, frame_pool="max"),
        "plain": MN(family="mn", width=0.1),
    }
    for name, arch in archs.items():
        about: dict[str, Any] = {"labels": "multi", "clip_seconds": 1.0, "clip_rate": 16_000}
        own = tags[::-1] if name == "vit" else tags
        publish(build_tagger(Model(arch=arch), name=name, tags=own, seed=7, **about).eval(), folder / name)
    return folder


def teach_recipe(folder: Path, teachers: Path, *names: str, settings: tuple[str, ...] = ()) -> Any:
    return load_teach_recipe(
        "teach-demo",
        [
            *("data.synthetic_clips=100", "data.clip_seconds=1.0", f"data.cache={folder}/clips", "teach.frames=true"),
            "teachers={" + ", ".join(f"{name}={{uri='{teachers}/{name}'}}" for name in names) + "}",
            *("teach.views=1", "augment={}", "teach.threads=1", *settings),
        ],
    )


def fill(folder: Path, teachers: Path, *names: str, settings: tuple[str, ...] = ()) -> str:
    recipe = teach_recipe(folder, teachers, *names, settings=settings)
    uri = str(folder / "store")
    done = fill_store(TeachRequest(recipe, uri, local=True), on_shard=lambda *_: None, warn=lambda line: None)
    assert done["status"] == "done"
    return uri


def test_taggers_fill_a_column_of_frames_each(teachers: Path, tmp_path: Path) -> None:
    """A store holds what they say: fp16 of a row's logits in the order of the store's tags, on the steps it names."""
    uri = fill(tmp_path, teachers, "frames", "vit")
    reader = stores.reader(uri, tmp_path)
    columns = reader.store.description["columns"]
    assert set(columns) == {"outputs", "frames.frames", "frames.vit"}
    recipe = load_recipe("demo", ["data.synthetic_clips=100", "data.clip_seconds=1.0"])
    for name in ("frames", "vit"):
        tagger, _ = load_tagger(teachers / name)
        clip_id = "synthetic-000007"
        x_T = (render(clip_id, recipe.data, 16_000) * 32768).round().clamp(-32768, 32767) / 32768
        with torch.no_grad():
            said_BPC = tagger.outputs(tagger.front_end(x_T[None])).frames_BPC
        order = [tagger.tags.index(tag) for tag in reader.store.description["tags"]]
        found = reader.read(f"frames.{name}", [clip_id], 0).values[0]
        torch.testing.assert_close(
            torch.from_numpy(found.astype(np.float32)), said_BPC[0][:, order].T, rtol=2e-3, atol=1e-3
        )
        grid, in_time = time_grid(tagger, said_BPC.shape[1]), columns[f"frames.{name}"]["frames"]
        assert in_time == {
            **{"count": grid.count, "hop_seconds": pytest.approx(grid.step)},
            "first_seconds": pytest.approx(grid.first + grid.step / 2),
        }


@pytest.mark.parametrize("layout", [(), ("teach.frames_k=10", "teach.frames_dtype='uint8'")], ids=["dense", "uint8"])
def test_a_student_learns_from_a_store_as_from_its_teacher(
    layout: tuple[str, ...], teachers: Path, tmp_path: Path, tiny: Any, start: Any
) -> None:
    """Clips without augmentation in the store, rolled and mixed ones for the student; a model that says the same."""
    uri = fill(tmp_path, teachers, "frames", settings=layout)
    own = ["data.labels='multi'", f"data.cache={tmp_path}/clips", "augment={roll=0.5, mask_time=0.3}"]
    student = "{arch={family='vit', dim=16, depth=1, heads=2, patch=8, stride=8, frame_pool='max'}}"
    teacher = f"{{arch={{family='frame_mn', width=0.1}}, init='{teachers}/frames'}}"
    edge = "student='vit', carries='frames', weight=2.0, temperature=1.5, view='clean'"
    live = tiny(
        "demo",
        *own,
        f"models={{teacher={teacher}, vit={student}}}",
        "schedule={kind='one_way', teachers=['teacher'], teacher_steps=0, steps=8}",
        f"edges=[{{teacher='teacher', {edge}}}]",
    )
    offline = tiny(
        "demo",
        *own,
        f"models={{vit={student}}}",
        "schedule={kind='mutual', burn_in=0, steps=8}",
        f"edges=[{{teacher='store:{uri}', {edge}}}]",
    )
    from_teacher, from_store = (losses(start(recipe)) for recipe in (live, offline))
    assert len(from_store) == 8
    tolerance = 5e-3 if layout else 1e-3
    torch.testing.assert_close(torch.tensor(from_store), torch.tensor(from_teacher), rtol=tolerance, atol=0)


@pytest.mark.parametrize("layout", [(), ("teach.frames_k=4", "teach.frames_dtype='uint8'")], ids=["dense", "uint8"])
def test_a_store_of_frames_is_heard_again(layout: tuple[str, ...], teachers: Path, tmp_path: Path) -> None:
    """What the teachers say agrees with what is stored within the step of its numbers; another column would not."""
    uri = fill(tmp_path, teachers, "frames", settings=layout)
    recipe = teach_recipe(tmp_path, teachers, "frames", settings=layout)
    found = hear_again(recipe, uri, clips=6, storage="runs")
    assert (found.rows, found.differing) == (6, ())
    assert found.largest["frames"] < (24 / 255 / 2 + 1e-2 if layout else 1e-2)
    reader = stores.reader(uri, tmp_path)
    clip_ids = [f"synthetic-{number:06d}" for number in range(6)]
    codec_rows = reader.read("frames", clip_ids, 0)
    heard_NC = np.zeros((6, 10, codec_rows.values.shape[-1]), np.float32)
    differences, sizes = _differences(codec_rows, heard_NC)
    assert differences.shape == sizes.shape
    assert differences.max() == pytest.approx(np.abs(codec_rows.values.astype(np.float64)).max())


def losses(run: Any) -> list[float]:
    trained(run, "vit")
    return [step["vit/loss"] for step in values(run) if "vit/loss" in step]


def test_a_teacher_without_logits_in_time_is_refused(teachers: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teach.frames = True: teachers.plain has no logits in time"):
        fill(tmp_path, teachers, "plain")
    with pytest.raises(ValueError, match=r"frames_k = 3: is for frames = true"):
        fill(tmp_path, teachers, "vit", settings=("teach.frames=false", "teach.frames_k=3"))


def test_training_clips_without_a_row_of_frames_are_named_before_the_first_step(
    teachers: Path, tmp_path: Path, tiny: Any, start: Any
) -> None:
    """reference/frames.md 7.8: of the 110 clips the store has 100. Labels in their place are for logits of clips."""
    uri = fill(tmp_path, teachers, "frames")
    own = ("data.labels='multi'", f"data.cache={tmp_path}/clips", "data.synthetic_clips=110", "augment={}")
    edge = f"{{teacher='store:{uri}', student='cnn', carries='frames', view='clean'%s}}"
    model, schedule = (
        "models={cnn={arch={family='frame_mn', width=0.1}}}",
        "schedule={kind='mutual', burn_in=0, steps=2}",
    )
    with pytest.raises(ValueError, match=r"holds no rows of \d clips: synthetic-0001\d\d, .*make a store that does"):
        start(tiny("demo", model, *own, schedule, f"edges=[{edge % ''}]"))
    with pytest.raises(ValueError, match="missing = 'labels': is for edges that carry logits"):
        tiny("demo", model, *own, schedule, "edges=[" + edge % ", missing='labels'" + "]")


def test_a_store_that_does_not_say_when_is_refused(teachers: Path, tmp_path: Path, tiny: Any, start: Any) -> None:
    uri = fill(tmp_path, teachers, "vit", settings=("augment={roll=0.2}",))

    def student(*edge: str) -> Any:
        own = ["data.labels='multi'", f"data.cache={tmp_path}/clips", "schedule={kind='mutual', burn_in=0, steps=2}"]
        fields = ", ".join([f"teacher='store:{uri}', student='cnn', carries='frames'", *edge])
        return tiny("demo", "models={cnn={arch={family='frame_mn', width=0.1}}}", *own, f"edges=[{{{fields}}}]")

    with pytest.raises(ValueError, match=r"its clips were rolled, so its frames do not say when; set view = 'same'"):
        start(student("view='other'"))
    with pytest.raises(ValueError, match=r"column = 'outputs': must be one with logits or probabilities of frames"):
        start(student("column='outputs'"))
