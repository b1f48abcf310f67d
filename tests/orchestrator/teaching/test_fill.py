"""`antiphon teach`: rows equal what the teachers say, whoever computes them and however often it was stopped."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from orchestrator.recipes.loader import load_teach_recipe
from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.merge import merge_stores
from orchestrator.stores.writer import is_finished
from orchestrator.teaching.fill import fill_store
from orchestrator.teaching.job import ShardFiller, TeachRequest
from orchestrator.teaching.rehear import hear_again
from tests import stores
from tests.orchestrator.artifacts.test_tag import publish
from tests.packs import damage_clip, pack_as, write_clips
from tests.processes import title
from tests.teachers import CLIPS, RATE, SECONDS, TAGS
from workloads.config.recipe import Augment
from workloads.data.augment import draw_partner, draw_view, mask_mel, roll_and_amplify, sound_mask, sound_of_view
from workloads.data.decode import load_sound
from workloads.data.prepare import prepare
from workloads.evaluate.predict import load_tagger
from workloads.stores.checksum_sample import sampled_views

AUGMENT = Augment(view_seed=3, roll=0.5, gain_db=6.0, mask_time=0.3, mask_mel=0.3)


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def sound_in_view(folder: Path, clip_id: str, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The waveform x_BT of one clip in one view, and where it is sound, by hand."""
    with (folder / f"{clip_id}.wav").open("rb") as file:
        x_T = load_sound(file, rate=RATE).x_T
    drawn, length = draw_view(AUGMENT, clip_id, view), round(SECONDS * RATE)
    start = drawn.crop_start(len(x_T), length=length)
    stored_T = (x_T * 32768).round().clamp(-32768, 32767)[start : start + length]
    x_BT = roll_and_amplify(torch.nn.functional.pad(stored_T, (0, length - len(stored_T)))[None] / 32768, [drawn])
    return x_BT, sound_mask(torch.tensor([sound_of_view(len(x_T), drawn, length=length)]), length)


def heard_by(
    folder: Path, teacher: str, clip_id: str, view: int, *, partner: str = "", weight: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, in the order of TAGS, and embedding of one clip in one view, mixed with its partner's, by hand."""
    tagger, _ = load_tagger(folder / teacher)
    x_BT, sound_BT = sound_in_view(folder, clip_id, view)
    if partner:
        other_BT, other_sound_BT = sound_in_view(folder, partner, view)
        x_BT, sound_BT = weight * x_BT + (1 - weight) * other_BT, sound_BT | other_sound_BT
    with torch.no_grad():  # kaldi128 computes the mel of a short clip without its padding
        mel_BMF = tagger.front_end(x_BT, sound_BT)
        masks_B4 = torch.tensor([draw_view(AUGMENT, clip_id, view).masks])
        mel_BMF = mask_mel(mel_BMF, masks_B4, value=tagger.front_end.mask_value)
        outputs = tagger.outputs(mel_BMF)
    order = [tagger.tags.index(tag) for tag in TAGS]
    return outputs.logits_BC[0, order].double().numpy(), outputs.embedding_BD[0].numpy()


def test_rows_are_what_the_teachers_say(folder, teach, tmp_path):
    keys = [(clip_id, view) for clip_id in (CLIPS[0], CLIPS[4], CLIPS[10]) for view in (0, 2)]
    heard = {name: [heard_by(folder, name, *key) for key in keys] for name in ("cnn", "vit")}
    cnn, vit = (np.array([logits for logits, _ in found]) for found in heard.values())
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    mean_p = (sigmoid(cnn) + sigmoid(vit)) / 2
    expected = {
        (): {"outputs": (cnn + vit) / 2},
        ("teach.holds=probabilities",): {"outputs": sigmoid((cnn + vit) / 2)},
        ("teach.mean_of=probabilities",): {"outputs": np.log(mean_p / (1 - mean_p))},
        ("teach.mean_of=probabilities", "teach.holds=probabilities"): {"outputs": mean_p},
        ("teach.apart=true", "teach.embedding=true", "teach.batch_size=1"): {
            **{"outputs.cnn": cnn, "outputs.vit": vit},
            **{f"embedding.{name}": np.array([vector for _, vector in found]) for name, found in heard.items()},
        },
    }
    assert len({clip.tobytes() for clip in cnn}) == len(keys)
    for number, (settings, columns) in enumerate(expected.items()):
        out = tmp_path / f"store-{number}"
        done = teach(out, *settings)
        assert (done["status"], done["rows"], done["clips"], done["views"]) == ("done", 33, 11, 3)
        assert (done["quarantined"], done["shards_written"]) == (["broken"], 3)
        reader = stores.reader(str(out), tmp_path)
        assert list(reader.store.description["columns"]) == list(columns)
        for name, values in columns.items():
            ids, views = zip(*keys, strict=True)
            found = reader.read(name, ids, views).values
            wanted = values.astype(np.float16)
            # in batches of other sizes the last bit of float32 may differ, and with it the rounding
            close = np.allclose(found, wanted, rtol=2**-10, atol=1e-6)
            assert np.array_equal(found, wanted) if "teach.batch_size=1" in settings else close, (settings, name)


def test_rows_of_mixtures_are_what_the_teacher_says_of_them(folder, teach, tmp_path):
    """Of short clips too, whose padding vit's front end does not hear; partners are from all shards."""
    own = ["augment.mixup=0.7", "augment.mixup_alpha=2.0", f"teachers={{vit={{uri='{folder}/vit'}}}}"]
    teach(tmp_path / "store", *own)
    reader, mixed = stores.reader(str(tmp_path / "store"), tmp_path), replace(AUGMENT, mixup=0.7, mixup_alpha=2.0)
    keys = [(clip_id, view) for clip_id in CLIPS for view in range(3)]
    ids, views = zip(*keys, strict=True)
    found = reader.read("outputs", ids, views).values
    partners, weights = [], []
    for place, (clip_id, view) in enumerate(keys):
        partners.append(draw_partner(mixed, clip_id, view, place=place // 3, clips=len(CLIPS)))
        weights.append(draw_view(mixed, clip_id, view).mix_weight)
        assert (partners[-1] == place // 3) == (weights[-1] == 1.0)
    assert 15 < sum(weight < 1 for weight in weights) < 33
    assert len(set(partners)) >= 9, "of 11"
    order = [reader.store.description["tags"].index(tag) for tag in TAGS]
    for row in range(0, len(keys), 4):
        mixture = {"partner": CLIPS[partners[row]], "weight": weights[row]} if weights[row] < 1 else {}
        logits, _ = heard_by(folder, "vit", *keys[row], **mixture)
        np.testing.assert_allclose(found[row][order], logits, rtol=2**-9, atol=1e-4)
    recipe = load_teach_recipe(str(folder / "mine.toml"), own)
    heard = hear_again(recipe, str(tmp_path / "store"), clips=4, storage="runs")
    assert (heard.rows, heard.differing) == (12, ())
    with pytest.raises(ValueError, match="its rows are of mixtures, whose partners follow from the list of all"):
        merge_stores([str(tmp_path / "store")] * 2, str(tmp_path / "merged"))


def test_a_stopped_store_goes_on_and_has_the_same_bytes(folder, teach, tmp_path, monkeypatch, antiphon):
    teach(tmp_path / "undisturbed", "teach.k=2")
    real, out = ShardFiller.fill, tmp_path / "store"

    def interrupted(filler: ShardFiller, shard: Any, clips: Any, partners: Any) -> Any:
        if shard.number == 1:
            raise KeyboardInterrupt
        return real(filler, shard, clips, partners)

    monkeypatch.setattr(ShardFiller, "fill", interrupted)
    words = ["teach", folder / "mine.toml", "--out", out, "--local", "--set", "teach.k=2", "--json"]
    stopped = antiphon(*words)
    assert stopped.code == 75
    assert f"the same command goes on: antiphon teach {folder}/mine.toml --out {out}" in stopped.err.replace("'", "")
    found = json.loads(stopped.out)
    assert {key: found[key] for key in ("status", "shards", "shards_written", "store")} == {
        **{"status": "preempted", "shards": 3, "shards_written": 1, "store": str(out)}
    }
    assert not is_finished(str(out))
    monkeypatch.setattr(ShardFiller, "fill", real)
    done = antiphon(*words)
    result = json.loads(done.out)
    assert (done.code, result["shards_written"]) == (0, 2), done.err
    assert all(result[f"seconds_{what}"] > 0 for what in ("waited", "heard", "wrote"))
    assert result["seconds_waited"] + result["seconds_heard"] + result["seconds_wrote"] < result["seconds"]
    assert content(out) == content(tmp_path / "undisturbed")
    assert "1 clips cannot be heard and have no rows: broken (" in done.err
    lost = next((out / "shards").glob("outputs-000001-*"))
    lost.unlink()
    assert teach(out, "teach.k=2")["shards_written"] == 1
    assert content(out) == content(tmp_path / "undisturbed")
    with pytest.raises(ValueError, match=r"columns\.outputs\.k is 2, expected 3; choose a store"):
        teach(out, "teach.k=3")


def test_two_commands_at_once_leave_the_bytes_of_one(teach, tmp_path, monkeypatch):
    """The other one comes when a shard's file is written and has no name yet, and ends before it gets it."""
    teach(tmp_path / "alone")
    out, real, others = tmp_path / "store", os.replace, []

    def replace_after_another(source: Any, target: Any) -> None:
        if "/shards/" in str(target) and not others:
            others.append("begun")
            others.append(teach(out))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_after_another)
    done = teach(out)
    assert [(one["status"], one["shards_written"]) for one in (done, others[1])] == [("done", 3), ("done", 3)]
    assert content(out) == content(tmp_path / "alone")


def test_ray_writes_the_same_bytes_also_where_a_worker_is_killed(teach, tmp_path):
    killed: list[int] = []

    def kill_a_worker(done: int, total: int) -> None:
        if done == 1 and not killed:
            workers = [child for child in psutil.Process().children(recursive=True) if "ShardFiller" in title(child)]
            killed.append(workers[0].pid)
            workers[0].kill()

    mixed = "augment.mixup=0.8"  # with clips of other shards
    teach(tmp_path / "here", mixed)
    done = teach(tmp_path / "on-ray", mixed, local=False, workers=1, on_shard=kill_a_worker)
    assert len(killed) == 1
    assert (done["status"], done["shards_written"]) == ("done", 3)
    assert content(tmp_path / "on-ray") == content(tmp_path / "here")


def test_a_teacher_that_gives_nan_is_named_with_the_clip(folder, teach, tmp_path):
    tagger, _ = load_tagger(folder / "vit")
    with torch.no_grad():
        next(tagger.backbone.parameters()).fill_(torch.nan)
    bad = publish(tagger, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"teachers\.vit: its logits of clip 'clip-00' in view 0 are not finite"):
        teach(tmp_path / "store", f"teachers.vit.uri={bad}")
    assert not is_finished(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.clip_seconds=0.4"], r"data\.clip_seconds = 0\.4: teachers\.vit hears clips of 0\.5 s only"),
        (["data.max_broken_share=0"], "broken"),
        (["teach.k=6"], r"columns\.outputs\.k = 6: a row has 5 values"),
        (["teachers.cnn.uri=/nowhere"], "'/nowhere'.*never finished"),
        (["teachers.cnn.uri=/nowhere.onnx"], r"'/nowhere\.onnx': there is no such file"),
        (["data.manifest=/nowhere.csv"], "nowhere"),
    ],
)
def test_mistakes_are_found_before_anything_is_stored(teach, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        teach(tmp_path / "store", *settings)
    assert object_store.file_sizes(str(tmp_path / "store")) == {}


def test_teachers_have_the_same_tags_and_views_differ(folder, teach, tmp_path):
    tagger, _ = load_tagger(folder / "cnn")
    tagger.tags = ("bell", "cat", "dog", "engine", "snow")
    other = publish(tagger, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"teachers\.vit: its tags are not those of teachers\.cnn: only cnn has 'rain'; only vit has"
    ):
        teach(tmp_path / "store", f"teachers.vit.uri={other}")
    plain = [f"augment.{name}=0" for name in ("roll", "gain_db", "mask_time", "mask_mel")]
    assert teach(tmp_path / "crops", *plain)["rows"] == 33  # some clips are longer: views are other crops
    lines = (folder / "clips.csv").read_text().splitlines()[:4]
    (tmp_path / "short.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    short = f"data.manifest={tmp_path}/short.csv"
    with pytest.raises(ValueError, match=r"teach\.views = 3: nothing is augmented and no clip is longer"):
        teach(tmp_path / "store", short, *plain)
    with pytest.raises(ValueError, match=r"data\.rate = 8000: teachers\.cnn hears 16000 Hz, and a lower rate has no"):
        teach(tmp_path / "store", "data.rate=8000")
    assert teach(tmp_path / "store", short, "teach.views=1", *plain)["rows"] == 2


@pytest.mark.parametrize("form", ["original", "flac", "int16"])
def test_a_packed_data_set_fills_the_store_of_the_plain_one(tiny, teach, folder, tmp_path, form):
    """Mixtures too, whose partners lie in other archives; `verify --hear` reads the pack as well."""
    settings = [*write_clips(tmp_path / "plain", 15), "data.max_broken_share=0.2"]
    (tmp_path / "plain" / "audio" / "3.flac").write_bytes(b"no sound")
    pack_as(tiny("demo", *settings), str(tmp_path / "packed"), form, archive_mb=0.1)
    assert len(list((tmp_path / "packed" / "archives").iterdir())) > 2
    of_pack = ["data.format=packed", f"data.root={tmp_path}/packed", "data.manifest=''", "data.labels=single"]
    mixed = ["augment.mixup=0.5", f"data.cache={tmp_path}/cache"]
    plain = teach(tmp_path / "of-plain", *settings, *mixed)
    packed = teach(tmp_path / "of-pack", *of_pack, *mixed)
    assert plain["quarantined"] == packed["quarantined"] == ["clip 003"]
    assert packed["rows"] == 3 * 14
    assert content(tmp_path / "of-plain") == content(tmp_path / "of-pack")
    recipe = load_teach_recipe(str(folder / "mine.toml"), [*of_pack, *mixed])
    heard = hear_again(recipe, str(tmp_path / "of-pack"), clips=5, storage="runs")
    assert (heard.clips, heard.differing) == (5, ())


def test_a_damaged_clip_of_a_pack_is_named_and_the_store_goes_on_once_it_is_restored(tiny, teach, tmp_path):
    """Both one of which the store says what was heard, which is found first, and any other."""
    recipe = tiny("demo", *write_clips(tmp_path / "plain", 30), "data.val_share=0.25")
    pack_as(recipe, str(tmp_path / "packed"), "flac", archive_mb=0.1)
    of_pack = ["data.format=packed", f"data.root={tmp_path}/packed", "data.manifest=''", "data.labels=single"]
    data = replace(recipe.data, format="packed", root=f"{tmp_path}/packed", manifest="")
    prepared = prepare(replace(recipe, data=data), FsspecFiles())
    clip_ids = [clip.clip_id for clip in prepared.dataset.clips]
    sampled = sampled_views(clip_ids, 3)
    for clip_id in (min(sampled), max(set(clip_ids) - set(sampled))):
        damage_clip(prepared, clip_id)
        with pytest.raises(
            ValueError, match=rf"clip {clip_id} cannot be used any more: its bytes .* `antiphon data ver"
        ):
            teach(tmp_path / "store", *of_pack)
        damage_clip(prepared, clip_id)  # the same bit: restored
    assert not is_finished(str(tmp_path / "store"))
    result = teach(tmp_path / "store", *of_pack)
    assert result["rows"] == 3 * 30
    assert result["shards_written"] < result["shards"], "what was written before is kept"


def test_networks_with_drawn_weights_fill_the_store_for_measuring(tmp_path):
    few = ["data.synthetic_clips=50", f"data.cache={tmp_path}/cache"]
    request = TeachRequest(load_teach_recipe("teach-bytes", few), str(tmp_path / "store"), local=True)
    done = fill_store(request, on_shard=lambda *_: None, warn=lambda line: None)
    assert (done["status"], done["rows"]) == ("done", 150)
    description = stores.reader(str(tmp_path / "store"), tmp_path).store.description
    assert (len(description["tags"]), description["columns"]["outputs"]["k"]) == (527, 20)
    unknown = load_teach_recipe("teach-bytes", [*few, "teachers.one.uri=drawn:mn99"])
    with pytest.raises(
        ValueError, match=r"teachers\.one\.uri = 'drawn:mn99': no such network; `antiphon models` prints"
    ):
        fill_store(TeachRequest(unknown, str(tmp_path / "other"), local=True), on_shard=print, warn=print)
