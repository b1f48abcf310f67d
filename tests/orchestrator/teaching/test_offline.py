"""Students of a store: they learn what they would learn from its teachers, and hear what these heard."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from orchestrator.recipes.loader import load_recipe, load_teach_recipe
from orchestrator.search.validation import check_search_data
from orchestrator.training.driver import check_recipe_data
from tests import small, stores
from tests.orchestrator.teaching.conftest import AUGMENT, VIEWS
from workloads.data.augment import VIEW_VERSION, StoredViews
from workloads.data.batches import Batches
from workloads.evaluate.predict import load_tagger
from workloads.run import Run
from workloads.train import advance, loop


def run_records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.session.work_dir / "events.jsonl").read_text().splitlines()]


def losses(run: Run, key: str) -> list[float]:
    for _ in advance(run):
        pass
    steps = [record["values"] for record in run_records(run) if record["kind"] == "metrics"]
    return [values[key] for values in steps if key in values]


def test_a_student_of_a_store_learns_what_it_learns_from_its_teacher(offline, store, teacher, start):
    stored = offline(f"[{{teacher='store:{store()}', student='student', weight=0.9}}]", "schedule.steps=24")
    live = offline(
        "[{teacher='cnn', student='student', weight=0.9}]",
        f"models.cnn={{arch={small.MN}, init='{teacher}'}}",
        "schedule={kind='one_way', teachers=['cnn'], teacher_steps=0, steps=24}",
    )
    from_store = losses(start(stored), "student/loss")
    from_teacher = losses(start(live), "student/loss")
    assert len(from_store) == 24  # three epochs: as many as there are views
    torch.testing.assert_close(torch.tensor(from_store), torch.tensor(from_teacher), rtol=2e-3, atol=0)


def test_epochs_go_round_the_views(offline, store, start):
    batches = start(offline(f"[{{teacher='store:{store()}', student='student', weight=0.9}}]")).batches
    sounds = [sounds_of_epoch(batches, epoch) for epoch in (0, 1, VIEWS)]
    both = sounds[0].keys() & sounds[1].keys() & sounds[2].keys()  # the last clips of an epoch are in no batch
    assert both
    assert all(torch.equal(sounds[0][clip], sounds[2][clip]) for clip in both)
    assert not any(torch.equal(sounds[0][clip], sounds[1][clip]) for clip in both)


def sounds_of_epoch(batches: Batches, epoch: int) -> dict[str, torch.Tensor]:
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    shards = [batches.shard(step, 0) for step in steps]
    return {clip: x_T for shard in shards for clip, x_T in zip(shard.clip_ids, shard.x_BT.clone(), strict=True)}


def test_the_clean_view_of_a_teacher_for_augmented_students(offline, store, teacher, start):
    """EfficientAT's way: the teacher heard each clip once and unchanged, the student hears it anew in every epoch."""
    clean = store("teach.views=1", "augment={}")
    stored = offline(f"[{{teacher='store:{clean}', student='student', weight=0.9, view='clean'}}]")
    live = offline(
        "[{teacher='cnn', student='student', weight=0.9, view='clean'}]",
        f"models.cnn={{arch={small.MN}, init='{teacher}'}}",
        "schedule={kind='one_way', teachers=['cnn'], teacher_steps=0, steps=30}",
    )
    run = start(stored)
    assert {key.view for step in (0, 9) for key in run.batches.shard(step, 0).keys} == {0, 1}
    from_store, from_teacher = losses(run, "student/loss"), losses(start(live), "student/loss")
    torch.testing.assert_close(torch.tensor(from_store), torch.tensor(from_teacher), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["augment.gain_db=3.0"], "views.augment.gain_db is 6.0, expected 3.0"),
        (["augment.view_seed=1"], "views.augment.view_seed is 0, expected 1"),
        (["data.clip_seconds=0.5"], "views.clip_seconds is 1.0, expected 0.5"),
        (["models.student.front_end.kind=efficientat128"], "here they have 32000 Hz; set data.rate = 32000 where"),
        (["edges.0.view=clean"], "views.augment.roll is 0.3, expected 0.0"),
        (["edges.0.column=other"], "column = 'other': must be one with logits or probabilities of whole clips"),
        (["data.synthetic_clips=200"], "holds no rows of "),
        (["data.synthetic_seed=1"], "its teachers got another waveform than the student does of clip"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(settings, message, offline, store, start):
    recipe = offline(f"[{{teacher='store:{store()}', student='student'}}]", *settings)
    with pytest.raises(ValueError, match=message):
        start(recipe)


def test_a_store_of_views_that_nobody_here_can_draw_is_refused_in_one_line(offline, tmp_path):
    views = stores.about()["views"] | {"version": VIEW_VERSION, "augment": {"view_seed": 0, "blur": 2.0}}
    stores.fill(str(tmp_path), stores.about(views=2) | {"views": views}, ["a"])
    for view in ("same", "clean"):
        recipe = offline(f"[{{teacher='store:{tmp_path}', student='student', view='{view}'}}]")
        with pytest.raises(
            ValueError, match=r"store '.*': views\.augment\.blur: unknown key; the keys of Augment are v"
        ):
            check_recipe_data(recipe)


def test_clips_without_rows_learn_from_labels_if_the_recipe_says_so(offline, store, start):
    own = ["data.synthetic_clips=200", "schedule.steps=2"]
    run = start(offline(f"[{{teacher='store:{store()}', student='student', missing='labels'}}]", *own))
    (data,) = [record for record in run.unreported_records if record["kind"] == "data"]
    (summary,) = data["stores"]
    assert summary["without_rows"] == sum(clip.clip_id not in run_ids(store()) for clip in run.prepared.splits.train)
    assert 0 < summary["without_rows"] < len(run.prepared.splits.train)
    assert all(map(torch.isfinite, map(torch.tensor, losses(run, "student/loss"))))


def run_ids(folder: Path) -> set[str]:
    return {clip_id for batch in stores.reader(str(folder), folder).store.clip_ids() for clip_id in batch}


def test_without_labels_the_tags_come_from_the_store(offline, start, tmp_path):
    """CED's way: training clips need no tags; those that validate and test have some of the store's."""
    rows = ["clip_id,path,tags,fold,labelled"]
    for number in range(40):
        scored, tag = number < 24, f"tag{number % 2}"
        rows.append(f"c{number:02},{number}.wav,{tag if scored else ''},{1 + number // 8},{scored}")
        samples = np.random.default_rng(number).uniform(-0.3, 0.3, 16_000)
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    uri = tmp_path / "store"
    views = {"version": VIEW_VERSION, "augment": {"view_seed": 0}, "clip_seconds": 1.0, "rate": 16_000, "count": 1}
    stores.fill(str(uri), stores.about(tags=5, k=2, views=1) | {"views": views}, [f"c{n:02}" for n in range(40)])
    data = [
        f"data.manifest={tmp_path}/clips.csv",
        f"data.root={tmp_path}",
        "data.format=manifest",
        "data.val_share=0.25",
    ]
    run = start(offline(f"[{{teacher='store:{uri}', student='student', weight=1.0, view='clean', loss='bce'}}]", *data))
    assert run.prepared.dataset.tags == ("tag0", "tag1", "tag2", "tag3", "tag4")
    assert any(not clip.labelled for clip in run.prepared.splits.train)
    kd_losses = losses(run, "store-to-student/kd_loss")
    assert len(kd_losses) == 30
    assert kd_losses[-1] < kd_losses[0]


def test_a_store_teaches_while_models_alternate(tiny, store, start):
    edges = [
        "{teacher='cnn', student='vit', weight=0.3}",
        "{teacher='vit', student='cnn', weight=0.3}",
        f"{{teacher='store:{store()}', student='vit', weight=0.4}}",
        f"{{teacher='store:{store()}', student='cnn', weight=0.4, name='ensemble-to-cnn'}}",
    ]
    schedule = "schedule={kind='alternate', burn_in=2, period=2, turns=2}"
    run = start(tiny("demo", f"edges=[{', '.join(edges)}]", schedule, *AUGMENT))
    taught = [(phase.trains, tuple(edge.key for edge in phase.edges)) for phase in run.phases]
    assert taught == [
        (("cnn", "vit"), ("store-to-vit", "ensemble-to-cnn")),
        (("cnn",), ("vit-to-cnn", "ensemble-to-cnn")),
        (("vit",), ("cnn-to-vit", "store-to-vit")),
    ]
    assert len(losses(run, "ensemble-to-cnn/kd_loss")) == 4
    assert run.pool.steps_taught == {"cnn": 2, "vit": 2}


@pytest.mark.parametrize("loss", ["cosine", "mse"])
def test_a_stored_embedding_teaches_as_the_teachers_own(loss, offline, store, teacher, start):
    kept = store("teach.embedding=true")
    edge = f"student='student', carries='embedding', loss='{loss}', weight=1.5"
    stored = offline(f"[{{teacher='store:{kept}', name='cnn-to-student-embedding', {edge}}}]", "schedule.steps=12")
    live = offline(
        f"[{{teacher='cnn', {edge}}}]",
        f"models.cnn={{arch={small.MN}, init='{teacher}'}}",
        "schedule={kind='one_way', teachers=['cnn'], teacher_steps=0, steps=12}",
    )
    from_store, from_teacher = losses(start(stored), "student/loss"), losses(start(live), "student/loss")
    assert len(from_store) == 12
    # drawn weights give embeddings near 1e-4, of which fp16 keeps few digits
    torch.testing.assert_close(torch.tensor(from_store), torch.tensor(from_teacher), rtol=1e-2, atol=0)


def test_the_shipped_student_fits_the_shipped_store_and_is_compared(tiny, store, start):
    own, teaches = load_recipe("offline-demo"), load_teach_recipe("teach-demo")
    assert (own.data, own.augment) == (teaches.data, teaches.augment)
    small_run = [f"edges.0.teacher=store:{store()}", f"models={{student={{arch={small.MN}}}}}", *AUGMENT]
    run = start(tiny("offline-demo", *small_run, "schedule.steps=4", "compare=true"))
    assert loop(run) == "done"
    result = run_records(run)[-1]["models"]
    assert {name: row["steps_learned"] for name, row in result.items()} == {"student": 4, "student_untaught": 4}
    assert result["student"]["weights_sha256"] != result["student_untaught"]["weights_sha256"]


def test_all_stores_whose_views_are_heard_go_round_as_many(offline, store, start):
    """A row of another view would be of another sound; rows of views that nobody hears do not count."""
    more, one = store("teach.views=5"), store("teach.views=1", "augment={}")
    edges = [f"{{teacher='store:{store()}', student='student', weight=0.2}}"]
    edges.append(f"{{teacher='store:{more}', student='student', weight=0.2, name='more'}}")
    edges.append(f"{{teacher='store:{one}', student='student', weight=0.2, name='one', view='other'}}")
    run = start(offline(f"[{', '.join(edges)}]"))
    assert run.stores.views == StoredViews(VIEWS, whole=True)
    assert {key: teacher.num_views for key, teacher in run.stores.teachers.items()} == {
        "store-to-student": VIEWS,
        "more": VIEWS,
        "one": 1,
    }
    alone = start(offline(f"[{{teacher='store:{one}', student='student', view='other'}}]"))
    assert alone.stores.views is None


def test_a_store_of_whole_clean_clips_leaves_the_others_all_their_views(offline, store, start):
    one = store("teach.views=1", "augment={}")
    edges = [f"{{teacher='store:{one}', student='student', weight=0.2, name='one', view='clean'}}"]
    edges.append(f"{{teacher='store:{store()}', student='student', weight=0.2}}")
    run = start(offline(f"[{', '.join(edges)}]"))
    assert {key: teacher.num_views for key, teacher in run.stores.teachers.items()} == {
        "one": 1,
        "store-to-student": VIEWS,
    }
    assert run.stores.views == StoredViews(VIEWS, whole=True)
    assert loop(run) == "done"


MIXED = ["augment.mixup=0.7", "augment.mixup_alpha=2.0"]


def test_mixtures_are_heard_as_the_teacher_heard_them(offline, store, teacher, start):
    """The rows of every draw are what the teacher says of the student's own mixture of it, over two epochs."""
    folder = store("teach.views=6", "teach.clips_per_shard=16", *MIXED)
    run = start(offline(f"[{{teacher='store:{folder}', student='student', weight=0.9}}]", *MIXED))
    (stored,), (tagger, _) = run.stores.teachers.values(), load_tagger(teacher)
    train, labels = {clip.clip_id for clip in run.prepared.splits.train}, run.prepared.dataset
    mixed = 0
    for step in range(2 * run.batches.steps_per_epoch):
        shard = run.batches.shard(step, 0)
        assert (len(shard.keys), len(shard.x_BT), shard.mixture) == (8, 8, None)
        assert {*shard.clip_ids} <= train
        with torch.no_grad():
            said_BC = tagger(shard.mel(tagger.front_end))
        torch.testing.assert_close(stored.outputs(shard, {})["logits"], said_BC, rtol=2e-3, atol=2e-4)
        own_BC = torch.from_numpy(
            labels.targets([clip for key in shard.clip_ids for clip in labels.clips if clip.clip_id == key])
        )
        mixed += int((shard.y_BC != own_BC).any(dim=1).sum())
    assert 0.3 < mixed / (16 * run.batches.steps_per_epoch) < 0.75, "some partners have the same tags"
    assert all(map(torch.isfinite, map(torch.tensor, losses(run, "student/loss"))))


@pytest.mark.parametrize(
    ("edges", "settings", "message"),
    [
        ("", [], r"views\.augment\.mixup is 0\.7, expected 0\.0"),
        (", view='clean'", MIXED, "its rows are of mixtures, so view = 'clean' cannot be; set it to 'same'"),
        (", missing='labels'", MIXED, "its rows are of mixtures, so missing = 'labels' cannot be"),
        ("SINGLE", MIXED, "its rows are of mixtures, and those of store .* are not"),
    ],
)
def test_mixtures_that_cannot_be_heard_again_are_refused(edges, settings, message, offline, store):
    folder = store("teach.views=6", "teach.clips_per_shard=16", *MIXED)
    single = (
        f", {{teacher='store:{store()}', student='student', weight=0.2, name='single'}}" if edges == "SINGLE" else ""
    )
    own = "" if single else edges
    with pytest.raises(ValueError, match=message):
        check_recipe_data(
            offline(f"[{{teacher='store:{folder}', student='student'{own}, weight=0.3}}{single}]", *settings)
        )


def test_a_clip_that_only_clips_of_other_parts_are_mixed_with_is_named(offline, store, start):
    always = ["augment.mixup=1.0"]
    recipe = offline(f"[{{teacher='store:{store('teach.views=1', *always)}', student='student'}}]", *always)
    with pytest.raises(
        ValueError, match=r"in all 1 views [0-9]+ training clips are mixed with clips that do not train: "
    ):
        start(recipe)


def test_mixtures_differ_from_epoch_to_epoch_also_where_views_come_again(offline, store, start):
    edge = f"[{{teacher='store:{store('teach.views=1')}', student='student', weight=0.9}}]"
    batches = start(offline(edge, "augment.mixup=0.5")).batches
    weights = {}
    for step in range(2 * batches.steps_per_epoch):
        shard = batches.shard(step, 0)
        for clip_id, weight in zip(shard.clip_ids, shard.mixture.weight_B.tolist(), strict=True):
            weights.setdefault(clip_id, []).append(weight)
    assert {len(both) for both in weights.values()} <= {1, 2}  # the last clips of an epoch are in no batch
    assert sum(len(set(both)) == 2 for both in weights.values()) > len(weights) / 2


def test_a_store_that_was_replaced_is_not_gone_on_with(offline, store, start, tmp_path):
    recipe = offline(f"[{{teacher='store:{tmp_path}/store', student='student'}}]", "schedule.steps=4")
    shutil.copytree(store(), tmp_path / "store")
    stopped = start(recipe)
    for _ in advance(stopped, until=2):
        pass
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(store("teach.k=5"), tmp_path / "store")
    with pytest.raises(ValueError, match="edges store-to-student: its store differs from the one this run was started"):
        start(recipe, checkpoints_of=stopped)


def test_a_store_that_does_not_fit_is_found_before_anything_starts(offline, store):
    recipe = offline(f"[{{teacher='store:{store()}', student='student'}}]", "augment.gain_db=3.0")
    with pytest.raises(ValueError, match=r"views\.augment\.gain_db is 6\.0, expected 3\.0"):
        check_recipe_data(recipe)
    with pytest.raises(ValueError, match="so there is no store; check the address"):
        check_search_data(offline("[{teacher='store:/nowhere', student='student'}]"), recipe.train)
