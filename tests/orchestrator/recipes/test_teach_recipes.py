"""Recipes of stores: reading, settings, extending, and the messages for mistakes."""

from pathlib import Path

import pytest

from orchestrator.recipes.loader import header, load_recipe, load_teach_recipe, shipped_names, shipped_teach_names

OWN = """
[teach]
views = 3
[teachers.cnn]
uri = "runs/demo-1/models/cnn"
[teachers.file]
uri = "other.onnx"
input = "logmel"
front_end = { kind = "kaldi128", mean = 1.0 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    return str(path)


def test_a_recipe_is_read_extended_and_set(recipe, tmp_path):
    loaded = load_teach_recipe(recipe, ["teach.k=4", "data.root=2024", 'teachers.vit.uri="s3://bucket/vit"'])
    assert (loaded.name, loaded.teach.views, loaded.teach.k, loaded.data.root) == ("mine", 3, 4, "2024")
    assert [*loaded.teachers] == ["cnn", "file", "vit"]
    front_end = loaded.teachers["file"].front_end
    assert front_end is not None
    assert (front_end.kind, front_end.mean, front_end.std) == ("kaldi128", 1.0, None)
    other = tmp_path / "other.toml"
    other.write_text(f"extends = {recipe!r}\n[teach]\nmean_of = 'probabilities'\n")
    assert load_teach_recipe(str(other)).teach.views == 3
    assert load_teach_recipe(str(other)).teach.mean_of == "probabilities"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teach.viewz=3"], r"teach\.viewz: unknown key; docs/stores\.md lists those that exist"),
        (["train.seed=3"], r"train: unknown key; docs"),
        (["teach.views=0"], r"teach\.views = 0: must be above 0"),
        (
            ["teach.apart=true", "teach.mean_of=logits"],
            r"teach\.mean_of = 'logits': with apart = true there is no mean",
        ),
        (["augment.mixup=0.5", "augment.mixup_on=mel"], r"augment\.mixup_on = 'mel': the mixtures of a store are of"),
        (["teach.embedding=true"], r"teach\.embedding = True: teachers\.file\.embedding is missing: name the output"),
        (["teachers.cnn.rate=8000"], r"teachers\.cnn\.rate: is for ONNX files; 'runs/demo-1/models/cnn' does not end"),
        (["teachers.Cnn.uri=x"], r"teachers\.Cnn: a name is a small letter"),
        (["teachers.cnn.uri="], r"teachers\.cnn\.uri = '': must be the folder of a tagger"),
    ],
)
def test_mistakes_are_named(recipe, settings, message):
    with pytest.raises(ValueError, match=message):
        load_teach_recipe(recipe, settings)


def test_one_teacher_has_no_mean_and_none_teaches_nothing(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text("[teachers]\ncnn = { uri = 'x' }\n")
    assert load_teach_recipe(str(path)).teach.views == 1
    with pytest.raises(ValueError, match=r"teach\.apart = True: is for several teachers; leave it out"):
        load_teach_recipe(str(path), ["teach.apart=true"])
    path.write_text("[teachers]\n")
    with pytest.raises(ValueError, match=r"teachers = \{\}: needs at least one teacher"):
        load_teach_recipe(str(path))


def test_recipes_of_runs_and_of_stores_are_told_apart(recipe):
    with pytest.raises(ValueError, match="has teachers, so it fills a store: use `antiphon teach`"):
        load_recipe(recipe)
    with pytest.raises(ValueError, match="has models, so it is a run's: use `antiphon run` or `search`"):
        load_teach_recipe("demo")
    assert not {*shipped_names()} & {*shipped_teach_names()}


@pytest.mark.parametrize("name", shipped_teach_names())
def test_every_shipped_recipe_begins_with_its_command(name):
    assert load_teach_recipe(name, ["data.root=x"]).name == name
    assert header(name)[0].startswith(f"antiphon teach {name}")
