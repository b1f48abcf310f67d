"""First weights from a published tagger: what a run takes, and what it refuses before the first step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import first_tagger
from workloads.config.architectures import AST, CED, MN, Arch, DyMN, EfficientNet, OnDevice, ViT
from workloads.config.recipe import FrontEnd, Model, Recipe
from workloads.models.families import build_backbone
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.train import Run, loop

TAUGHT = ("schedule.teacher_steps=0", "schedule.steps=2")


@pytest.fixture
def published(tiny: Callable[..., Recipe], start: Callable[..., Run]) -> Callable[..., str]:
    """Trains two steps and returns the folder of a published model; `settings` may change what it heard or was told."""

    def make(*settings: str) -> str:
        plan = ("schedule.teacher_steps=1", "schedule.steps=1")
        run = start(tiny("one-way", *plan, *settings))
        assert loop(run) == "done"
        (folder,) = Path(run.session.work_dir.parent).rglob("models/cnn/weights.safetensors")
        return str(folder.parent)

    return make


def test_a_frozen_teacher_is_its_published_self(tiny, start, published) -> None:
    folder = published()
    run = start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))
    assert loop(run) == "done"
    again = run.session.work_dir.parent / "models" / "cnn" / "weights.safetensors"
    assert again.read_bytes() == (Path(folder) / "weights.safetensors").read_bytes()


def test_weights_that_heard_another_front_end_are_refused(tiny, start, published) -> None:
    folder = published()
    with pytest.raises(
        ValueError, match=r'are of front_end\.kind = "logmel64", .* set models\.cnn\.front_end\.kind = "logmel64"'
    ):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}", 'models.cnn.front_end={kind="kaldi128"}'))


def test_a_frozen_teacher_without_a_head_for_these_tags_is_refused(tiny, start, published, tmp_path) -> None:
    """Its last layer would be drawn at random, and it would never learn better."""
    folder = Path(published())
    state = checkpoint.read_state(folder)
    tags = [tag.replace("chirp_up", "chirp") for tag in state["tags"]]
    assert tags != state["tags"]
    tensors = {"weights": checkpoint.read_tensors(folder, "weights")}
    folder = checkpoint.write(tmp_path / "others", tensors=tensors, state=state | {"tags": tags})
    with pytest.raises(ValueError, match=r"models\.cnn\.init.*cnn never learns them"):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))
    assert start(tiny("one-way", f"models.cnn.init={folder}", "schedule.teacher_steps=1"))  # learning mends it


OTHER_STRIDES = '{family="mn", width=0.1, bn_momentum=0.1, strides=[2,2,2,1]}'


def test_a_network_whose_weights_fit_by_name_only_is_refused(tiny, start, published) -> None:
    """Strides are no part of any weight: every tensor of the other network has the same name and shape."""
    folder = published(f"models.cnn.arch={OTHER_STRIDES}")
    told = r"weights are of arch\.strides = \[2, 2, 2, 1\], and the recipe says \[2, 2, 2, 2\]; set models\.cnn\.arch\."
    for teacher_steps in (0, 1):
        with pytest.raises(ValueError, match=told):
            start(tiny("one-way", f"schedule.teacher_steps={teacher_steps}", f"models.cnn.init={folder}"))
    assert start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}", f"models.cnn.arch={OTHER_STRIDES}"))


def test_how_it_learned_may_change(tiny, start, published) -> None:
    other = '{family="mn", width=0.1, bn_momentum=0.01, dropout=0.1}'
    assert start(tiny("one-way", *TAUGHT, f"models.cnn.init={published()}", f"models.cnn.arch={other}"))


@pytest.mark.parametrize(
    ("front_end", "place", "was"),
    [
        ("mean=1.5", "mean", r"-\d+\.\d+"),
        ("std=1.5", "std", r"\d+\.\d+"),
        ("frames=90", "frames", "0"),
    ],
)
def test_only_who_learns_may_hear_it_otherwise(tiny, start, published, front_end, place, was) -> None:
    settings = (f"models.cnn.init={published()}", f'models.cnn.front_end={{kind="logmel64", {front_end}}}')
    told = rf"weights are of front_end\.{place} = {was}, and the recipe says .*; set models\.cnn\.front_end\.{place} = "
    with pytest.raises(ValueError, match=told):
        start(tiny("one-way", *TAUGHT, *settings))
    assert start(tiny("one-way", "schedule.teacher_steps=1", *settings))


def test_a_teacher_of_other_labels_is_refused(tiny, start, published, tmp_path) -> None:
    """Its softmax says which one, the student's sigmoids say how much of each."""
    folder = Path(published())
    state, tensors = checkpoint.read_state(folder), {"weights": checkpoint.read_tensors(folder, "weights")}
    folder = checkpoint.write(tmp_path / "one", tensors=tensors, state=state | {"labels": "single"})
    with pytest.raises(ValueError, match=r'weights are of labels = "single", .* set data\.labels = "single"'):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))
    assert start(tiny("one-way", "schedule.teacher_steps=1", f"models.cnn.init={folder}"))


def test_a_transformer_of_longer_clips_is_no_teacher_of_shorter_ones(tiny, start, published) -> None:
    """Its positions would be cut; a CNN's weights do not know how long clips are."""
    vit = 'models.cnn.arch={family="vit", dim=16, depth=1, heads=2, pool="avg"}'
    short = ("one-way", *TAUGHT, "data.clip_seconds=0.7")
    with pytest.raises(ValueError, match=r"are of clip_seconds = 1\.0, .* set data\.clip_seconds = 1\.0"):
        start(tiny(*short, vit, f"models.cnn.init={published(vit)}"))
    assert start(tiny(*short, f"models.cnn.init={published()}"))


def test_who_never_learned_is_delivered_with_its_own_words(tiny, start, published) -> None:
    """What it learned from, how it scored and whose it is, and not this run's data."""
    folder = published()
    was = checkpoint.read_state(Path(folder))
    run = start(tiny("one-way", *TAUGHT, "data.synthetic_clips=120", f"models.cnn.init={folder}"))
    assert loop(run) == "done"
    delivered = checkpoint.read_state(run.session.work_dir.parent / "models" / "cnn")
    assert delivered["model"].pop("init") == folder
    assert was["model"].pop("init") == ""
    assert delivered == was
    learned = checkpoint.read_state(run.session.work_dir.parent / "models" / "vit")
    assert learned["data"]["fingerprint"] != was["data"]["fingerprint"]
    assert set(learned["val"])


def test_statistics_that_are_written_out_are_the_same(tiny, start, published) -> None:
    """None and the number that it stands for are one."""
    run = start(tiny())
    front_end = first_tagger(run, "cnn").front_end
    written = f'models.cnn.front_end={{kind="logmel64", mean={front_end.mean}, std={front_end.std}}}'
    assert start(tiny("one-way", *TAUGHT, f"models.cnn.init={published()}", written))
    assert start(tiny("one-way", *TAUGHT, f"models.cnn.init={published(written)}"))


def test_a_choice_of_kernels_that_has_cooled_is_not_heated_again(tiny, start, published) -> None:
    arch = 'models.cnn.arch={family="dymn", width=0.1}'
    folder = published(arch)
    settings = ("one-way", "schedule.teacher_steps=1", f"models.cnn.init={folder}", arch)
    told = (
        r"weights are of arch\.temperature = 1\.0, and the recipe says 30\.0; set models\.cnn\.arch\.temperature = 1\.0"
    )
    with pytest.raises(ValueError, match=told):
        start(tiny(*settings))
    with pytest.raises(ValueError, match=told):  # a bare file has no words, and the temperature is among its tensors
        start(tiny(*settings, f"models.cnn.init={folder}/weights.safetensors"))
    run = start(tiny(*settings, "models.cnn.arch.temperature=1"))
    assert loop(run) == "done"
    assert (
        checkpoint.read_tensors(run.session.work_dir.parent / "models" / "cnn", "weights")["backbone.temperature"] == 1
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "COMMITTED.json").unlink(), "nor a finished tagger's folder"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json differs from its SHA-256"),
    ],
)
def test_an_unfinished_or_damaged_folder_is_refused(tiny, start, published, damage, told) -> None:
    folder = published()
    damage(Path(folder))
    with pytest.raises(ValueError, match=told):
        start(tiny("one-way", *TAUGHT, f"models.cnn.init={folder}"))


HEADLESS: dict[str, tuple[Arch, str, tuple[str, ...]]] = {  # what it is, what it hears, and how its head begins
    "mn": (MN(family="mn", width=0.1), "efficientat128", ("classifier.3.",)),
    "mn_attention": (MN(family="mn", width=0.1, head="attention"), "efficientat128", ("classifier.",)),
    "dymn": (DyMN(family="dymn", width=0.1, temperature=1.0), "efficientat128", ("classifier.3.",)),
    "efficientnet": (EfficientNet(family="efficientnet"), "kaldi128", ("net.classifier.",)),
    "vit": (ViT(family="vit", dim=16, depth=1, heads=2), "logmel64", ("head.",)),
    "ast": (AST(family="ast", size="tiny", stride=16), "kaldi128", ("mlp_head.",)),
    "ced": (CED(family="ced"), "ced64", ("head.",)),
    "ondevice": (OnDevice(family="ondevice", variant="tc_resnet"), "logmel40", ("head.",)),
}


@pytest.mark.parametrize("family", HEADLESS)
def test_weights_that_were_trained_without_labels_bring_all_but_the_head(family) -> None:
    arch, kind, head = HEADLESS[family]
    tagger = Tagger(
        Model(arch=arch, front_end=FrontEnd(kind=kind)),
        tags=("a", "b", "c"),
        labels="multi",
        clip_seconds=1.0,
        clip_rate=16_000,
    )
    backbone = tagger.backbone
    frames = tagger.front_end.frames(1.0)
    other = build_backbone(arch, bands=tagger.front_end.bands, frames=frames, num_classes=3).state_dict()
    brought = {name: tensor for name, tensor in other.items() if not name.startswith(head)}
    fresh = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if name not in brought}
    tagger.load_initial(brought)
    assert set(tagger.started_afresh) == set(fresh) != set()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, (brought | fresh)[name]), name
    body = next(name for name in brought if name.endswith("weight"))
    with pytest.raises(ValueError, match=f"missing: {body}"):
        tagger.load_initial({name: tensor for name, tensor in brought.items() if name != body})


def test_weights_without_a_head_start_a_learner_and_teach_nobody(tiny, start, published, tmp_path) -> None:
    weights = load_file(Path(published()) / "weights.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if ".classifier.3." not in name}, tmp_path / "ssl.safetensors"
    )
    init = f"models.cnn.init={tmp_path}/ssl.safetensors"
    with pytest.raises(ValueError, match=r"models\.cnn\.init.*cnn never learns them"):
        start(tiny("one-way", *TAUGHT, init))
    run = start(tiny("one-way", "schedule.teacher_steps=1", "schedule.steps=1", init))
    assert first_tagger(run, "cnn").started_afresh == ("classifier.3.weight", "classifier.3.bias")
    assert loop(run) == "done"
