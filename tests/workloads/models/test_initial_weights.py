"""Initial weights from a published tagger: what a run accepts, and what it refuses before the first step."""

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
from workloads.run import Run
from workloads.runtime import checkpoint
from workloads.train import loop

FROZEN_TEACHER = ("schedule.teacher_steps=0", "schedule.steps=2")


@pytest.fixture
def published(tiny: Callable[..., Recipe], start: Callable[..., Run]) -> Callable[..., str]:
    """Trains two steps and returns the folder of the published model; `settings` are those of that run."""

    def make(*settings: str) -> str:
        short = ("schedule.teacher_steps=1", "schedule.steps=1")
        run = start(tiny("one-way", *short, *settings))
        assert loop(run) == "done"
        (folder,) = Path(run.session.work_dir.parent).rglob("models/cnn/weights.safetensors")
        return str(folder.parent)

    return make


def test_a_frozen_teacher_is_published_unchanged(tiny, start, published) -> None:
    folder = published()
    run = start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}"))
    assert loop(run) == "done"
    published_again = run.session.work_dir.parent / "models" / "cnn" / "weights.safetensors"
    assert published_again.read_bytes() == (Path(folder) / "weights.safetensors").read_bytes()


def test_weights_of_another_front_end_are_refused(tiny, start, published) -> None:
    folder = published()
    with pytest.raises(
        ValueError, match=r'have front_end\.kind = "logmel64", .* set models\.cnn\.front_end\.kind = "logmel64"'
    ):
        start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}", 'models.cnn.front_end={kind="kaldi128"}'))


def test_a_frozen_teacher_without_a_head_for_these_tags_is_refused(tiny, start, published, tmp_path) -> None:
    """Its last layer would be random, and no phase would train it."""
    folder = Path(published())
    state = checkpoint.read_state(folder)
    tags = [tag.replace("chirp_up", "chirp") for tag in state["tags"]]
    assert tags != state["tags"]
    tensors = {"weights": checkpoint.read_tensors(folder, "weights")}
    folder = checkpoint.write(tmp_path / "others", tensors=tensors, state=state | {"tags": tags})
    with pytest.raises(ValueError, match=r"models\.cnn\.init.*cnn never trains in this schedule"):
        start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}"))
    assert start(tiny("one-way", f"models.cnn.init={folder}", "schedule.teacher_steps=1"))  # allowed where it trains


OTHER_STRIDES = '{family="mn", width=0.1, bn_momentum=0.1, strides=[2,2,2,1]}'


def test_a_network_whose_weights_fit_by_name_only_is_refused(tiny, start, published) -> None:
    """Strides do not show in the weights: every tensor of the other network has the same name and shape."""
    folder = published(f"models.cnn.arch={OTHER_STRIDES}")
    message = r"weights have arch\.strides = \[2, 2, 2, 1\], the recipe has \[2, 2, 2, 2\]; set models\.cnn\.arch\."
    for teacher_steps in (0, 1):
        with pytest.raises(ValueError, match=message):
            start(tiny("one-way", f"schedule.teacher_steps={teacher_steps}", f"models.cnn.init={folder}"))
    assert start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}", f"models.cnn.arch={OTHER_STRIDES}"))


def test_training_settings_may_change(tiny, start, published) -> None:
    other = '{family="mn", width=0.1, bn_momentum=0.01, dropout=0.1}'
    assert start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={published()}", f"models.cnn.arch={other}"))


@pytest.mark.parametrize(
    ("front_end", "place", "saved"),
    [
        ("mean=1.5", "mean", r"-\d+\.\d+"),
        ("std=1.5", "std", r"\d+\.\d+"),
        ("frames=90", "frames", "0"),
    ],
)
def test_only_a_model_that_trains_may_have_another_normalisation(
    tiny, start, published, front_end, place, saved
) -> None:
    settings = (f"models.cnn.init={published()}", f'models.cnn.front_end={{kind="logmel64", {front_end}}}')
    message = rf"weights have front_end\.{place} = {saved}, the recipe has .*; set models\.cnn\.front_end\.{place} = "
    with pytest.raises(ValueError, match=message):
        start(tiny("one-way", *FROZEN_TEACHER, *settings))
    assert start(tiny("one-way", "schedule.teacher_steps=1", *settings))


def test_a_teacher_of_other_labels_is_refused(tiny, start, published, tmp_path) -> None:
    """Its softmax is over exclusive tags, the student's sigmoids are independent."""
    folder = Path(published())
    state, tensors = checkpoint.read_state(folder), {"weights": checkpoint.read_tensors(folder, "weights")}
    folder = checkpoint.write(tmp_path / "one", tensors=tensors, state=state | {"labels": "single"})
    with pytest.raises(ValueError, match=r'weights have labels = "single", .* set data\.labels = "single"'):
        start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}"))
    assert start(tiny("one-way", "schedule.teacher_steps=1", f"models.cnn.init={folder}"))


def test_a_transformer_of_longer_clips_cannot_teach_shorter_ones(tiny, start, published) -> None:
    """Its positions would be cropped; a CNN's weights do not depend on the length of clips."""
    vit = 'models.cnn.arch={family="vit", dim=16, depth=1, heads=2, pool="avg"}'
    short = ("one-way", *FROZEN_TEACHER, "data.clip_seconds=0.7")
    with pytest.raises(ValueError, match=r"have clip_seconds = 1\.0, .* set data\.clip_seconds = 1\.0"):
        start(tiny(*short, vit, f"models.cnn.init={published(vit)}"))
    assert start(tiny(*short, f"models.cnn.init={published()}"))


def test_a_model_that_never_trains_is_published_with_its_saved_state(tiny, start, published) -> None:
    """Its training data, scores and origin, and not this run's data."""
    folder = published()
    saved = checkpoint.read_state(Path(folder))
    run = start(tiny("one-way", *FROZEN_TEACHER, "data.synthetic_clips=120", f"models.cnn.init={folder}"))
    assert loop(run) == "done"
    delivered = checkpoint.read_state(run.session.work_dir.parent / "models" / "cnn")
    assert delivered["model"].pop("init") == folder
    assert saved["model"].pop("init") == ""
    assert delivered == saved
    trained = checkpoint.read_state(run.session.work_dir.parent / "models" / "vit")
    assert trained["data"]["fingerprint"] != saved["data"]["fingerprint"]
    assert set(trained["val"])


def test_a_default_normalisation_equals_the_same_numbers_written_out(tiny, start, published) -> None:
    run = start(tiny())
    front_end = first_tagger(run, "cnn").front_end
    written = f'models.cnn.front_end={{kind="logmel64", mean={front_end.mean}, std={front_end.std}}}'
    assert start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={published()}", written))
    assert start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={published(written)}"))


def test_a_lowered_temperature_is_not_raised_again(tiny, start, published) -> None:
    arch = 'models.cnn.arch={family="dymn", width=0.1}'
    folder = published(arch)
    settings = ("one-way", "schedule.teacher_steps=1", f"models.cnn.init={folder}", arch)
    message = r"weights have arch\.temperature = 1\.0, the recipe has 30\.0; set models\.cnn\.arch\.temperature = 1\.0"
    with pytest.raises(ValueError, match=message):
        start(tiny(*settings))
    # a bare file has no saved state, but the temperature is among its tensors
    with pytest.raises(ValueError, match=message):
        start(tiny(*settings, f"models.cnn.init={folder}/weights.safetensors"))
    run = start(tiny(*settings, "models.cnn.arch.temperature=1"))
    assert loop(run) == "done"
    assert (
        checkpoint.read_tensors(run.session.work_dir.parent / "models" / "cnn", "weights")["backbone.temperature"] == 1
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "COMMITTED.json").unlink(), "nor a finished tagger's folder"),
        (lambda folder: (folder / "state.json").write_text("{}"), "state.json differs from its SHA-256"),
    ],
)
def test_an_unfinished_or_damaged_folder_is_refused(tiny, start, published, damage, message) -> None:
    folder = published()
    damage(Path(folder))
    with pytest.raises(ValueError, match=message):
        start(tiny("one-way", *FROZEN_TEACHER, f"models.cnn.init={folder}"))


HEADLESS: dict[str, tuple[Arch, str, tuple[str, ...]]] = {  # architecture, front end, and prefixes of its head
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
def test_weights_trained_without_labels_provide_all_but_the_head(family) -> None:
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
    provided = {name: tensor for name, tensor in other.items() if not name.startswith(head)}
    initial = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if name not in provided}
    tagger.load_initial(provided)
    assert set(tagger.newly_initialised) == set(initial) != set()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, (provided | initial)[name]), name
    body = next(name for name in provided if name.endswith("weight"))
    with pytest.raises(ValueError, match=f"missing: {body}"):
        tagger.load_initial({name: tensor for name, tensor in provided.items() if name != body})


def test_weights_without_a_head_are_for_a_model_that_trains_only(tiny, start, published, tmp_path) -> None:
    weights = load_file(Path(published()) / "weights.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if ".classifier.3." not in name}, tmp_path / "ssl.safetensors"
    )
    init = f"models.cnn.init={tmp_path}/ssl.safetensors"
    with pytest.raises(ValueError, match=r"models\.cnn\.init.*cnn never trains in this schedule"):
        start(tiny("one-way", *FROZEN_TEACHER, init))
    run = start(tiny("one-way", "schedule.teacher_steps=1", "schedule.steps=1", init))
    assert first_tagger(run, "cnn").newly_initialised == ("classifier.3.weight", "classifier.3.bias")
    assert loop(run) == "done"


def test_clips_too_short_for_a_network_name_the_model(tiny, start) -> None:
    with pytest.raises(ValueError, match=r"data\.clip_seconds = 0\.01: models\.cnn \(mn on logmel64\)"):
        start(tiny("demo", "data.clip_seconds=0.01"))
