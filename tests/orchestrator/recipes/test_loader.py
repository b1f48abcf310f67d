"""Recipes: reading, settings, extending, and the messages for mistakes."""

import json
import re
from pathlib import Path

import pytest

from orchestrator.recipes.loader import SHIPPED, flatten, header, load_recipe, parse, resolve, shipped_names
from orchestrator.search.request import SearchRequest
from orchestrator.search.validation import check

ROOT = Path(__file__).parents[3]
OURS = ("tkd-demo", "tkd-kws", "tkd-kws-25", "tkd-kws-two")  # on data that no paper has
PAPERS = [
    name
    for name in shipped_names()
    if name.split("-")[0] in ("ast", "psla", "efficientat", "ced", "tkd") and name not in OURS
]


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_is_unchanged_by_resolve_and_parse(name):
    recipe = load_recipe(name, ["data.root=x", "data.manifest=x.csv"])
    assert recipe.name == name
    assert parse(json.loads(json.dumps(resolve(recipe)))) == recipe


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_begins_with_its_command(name):
    assert header(name)[0].startswith((f"antiphon run {name}", f"antiphon search {name}"))


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_states_its_needs_and_that_it_was_not_trained_here(name):
    lines = header(name)
    assert f"data.{'manifest' if name == 'efficientat-dcase20' else 'root'}=" in lines[0]
    assert lines[1].startswith("NOT trained here. Published: ")
    for word in ("Needs", "Hours:", "Differences from the paper:"):
        assert any(line.startswith(word) for line in lines)
    with pytest.raises(ValueError, match=r"needs (the data set's folder: )?--set data\.(root|manifest)="):
        load_recipe(name)


@pytest.mark.parametrize("name", PAPERS)
def test_every_value_of_a_papers_recipe_carries_its_source(name):
    """Values of models, data and training; not names, roles, the device and the intervals of evaluation."""
    unsourced = ("name", "about", "extends", "format", "teacher", "student", "device", "eval_every", "checkpoint_every")
    free = ("#", "[", *unsourced, "burn_in = 0", *(f'kind = "{kind}"' for kind in ("mutual", "one_way", "best")))
    lines = [line for line in (SHIPPED / f"{name}.toml").read_text().splitlines() if line]
    values = [line for line in lines if not line.startswith(free)]
    assert values
    assert [line for line in values if "  # " not in line] == []


def test_settings_reach_tables_lists_and_text():
    recipe = load_recipe(
        "demo", ["train.seed=7", "edges.1.weight=0.25", "data.root=/some/where", "models.cnn.arch.width=0.5"]
    )
    assert recipe.train.seed == 7
    assert recipe.edges[1].weight == 0.25
    assert recipe.data.root == "/some/where"
    assert recipe.models["cnn"].arch.width == 0.5


def test_a_recipe_file_may_extend_a_shipped_one(tmp_path):
    path = tmp_path / "mine.toml"
    mutual = '[schedule]\nkind = "mutual"\nburn_in = 1\nsteps = 2\n'
    path.write_text(f'extends = "esc10-alternate"\n[data]\nroot = "x"\n{mutual}')
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert recipe.models == load_recipe("esc10-alternate", ["data.root=x"]).models
    assert (recipe.schedule.kind, recipe.schedule.steps) == ("mutual", 2)  # no key of the base's kind is left


def test_a_resolved_recipe_can_be_run_again(tmp_path):
    path = tmp_path / "resolved.json"
    recipe = load_recipe("gated")
    path.write_text(json.dumps(resolve(recipe)))
    assert load_recipe(str(path)) == recipe


def test_flattening_keeps_every_value_under_its_path():
    flat = flatten(resolve(load_recipe("demo")))
    assert flat["edges.1.teacher"] == "vit"
    assert flat["models.cnn.optimizer.betas"] == "[0.9, 0.999]"
    assert flat["models.cnn.arch.family"] == "mn"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.b", "--set 'a.b': must look like a.b=value"),
        ("train.seeds=3", "train.seeds: unknown key"),
        ("data.rate=8000", "data.rate = 8000: models.cnn hears 16000 Hz, and a lower rate has no effect; leave it out"),
        ("train.seed=x", "train.seed = 'x': input should be a valid integer"),
        (
            "models.cnn.arch.family=foo",
            "models.cnn.arch.family = 'foo': must be one of 'mn', 'dymn', 'frame_mn', 'efficientnet', 'vit', 'ast'",
        ),
        ("models.cnn.arch.width=-1", "models.cnn.arch.width = -1.0: must be above 0"),
        ("models.cnn.arch.widht=1", "models.cnn.arch.widht: unknown key"),
        ("edges.0.weight=2", "edges.0.weight = 2.0: must be between 0 and 1"),
        ("edges.0.teacher=dog", "edges: no model named 'dog'; the models are cnn, vit"),
        ("edges.0.teacher=vit", "edges.0.student = 'vit': a model cannot be its own teacher"),
        ("edges.1.student=vit", "a model cannot be its own teacher"),
        ("edges.5.weight=1", "no such key in the recipe"),
        ("schedule.kind=gated", "schedule.steps: is missing"),
        (
            "schedule.kind=often",
            "must be one of 'one_way', 'generations', 'alternate', 'mutual', 'gated', 'per_sample'",
        ),
        ("data.format=esc50", "data.root = '': format esc50 needs the data set's folder"),
        ("data.val_share=0.7", "data.val_share = 0.7: must be 0.001 to 0.5"),
        ("models.vit.arch.heads=0", "models.vit.arch.heads = 0: must be above 0"),
        ("models.cnn.optimizer.betas=[1.0, 0.9]", "models.cnn.optimizer.betas = (1.0, 0.9): each must be 0 up to 1"),
        ("models.cnn.optimizer.weight_decay=-1", "weight_decay = -1.0: must be 0 or more"),
        ("train.precision=fp8", "train.precision = 'fp8'"),
        ("train.tf32=true", "train.tf32 = True: needs device = 'cuda'; set that, or tf32 = false"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_value_and_rule(setting, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        load_recipe("demo", [setting])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "setting", "meant"),
    [
        ("dmeo", "train.seed=1", "demo"),
        ("Demo", "train.seed=1", "demo"),
        ("demo", "train.seeds=3", "seed"),
        ("demo", "trian.seed=1", "train"),
        ("demo", "models.cnn.arch.widht=1", "width"),
        ("demo", "models.cnn.optimiser.lr=1", "optimizer"),
        ("demo", "models.cn.optimizer.lr=1", "cnn"),
        ("demo", "edges.0.temprature=2", "temperature"),
        ("demo", "schedule.turn=2", "turns"),
        ("search-demo", "search.trails=2", "trials"),
        ("demo", 'models.cnn.arch={family="vitt"}', "vit"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest_one(recipe, setting, meant):
    with pytest.raises(ValueError, match=rf"; did you mean '{meant}'\?"):
        load_recipe(recipe, [setting])


def test_a_misspelt_file_is_told_the_nearest_one_and_other_names_none(tmp_path):
    (tmp_path / "birds.toml").write_text('extends = "demo"')
    with pytest.raises(ValueError, match=rf"did you mean '{tmp_path}/birds.toml'\?"):
        load_recipe(str(tmp_path / "brids.toml"))
    for recipe, setting in (("xyzzy", "train.seed=1"), ("demo", "train.xyzzy=1")):
        with pytest.raises(ValueError, match=r"^(?!.*did you mean)"):
            load_recipe(recipe, [setting])


def test_mel_mixup_needs_one_front_end():
    other = ["augment.mixup=0.5", "augment.mixup_on=mel"]
    assert load_recipe("demo", other)
    with pytest.raises(ValueError, match=r"mel-mixup needs one shared front end, use 'waveform'"):
        load_recipe("demo", [*other, 'models.vit.front_end={kind="kaldi128"}'])


def test_unknown_recipes_list_the_shipped_ones_and_circles_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shipped are alternate, ast-audioset"):
        load_recipe("dmeo")
    path = tmp_path / "a.toml"
    path.write_text(f'extends = "{path}"\n')
    with pytest.raises(ValueError, match="in a circle"):
        load_recipe(str(path))
    path.write_text("name = \n")
    with pytest.raises(ValueError, match="not readable"):
        load_recipe(str(path))


def test_the_searches_in_the_documents_are_recipes_that_can_be_searched(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "searching.md").read_text(), re.DOTALL)
    searches = [block for block in blocks if "[search]" in block]
    assert searches
    for number, block in enumerate(searches):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        check(SearchRequest(load_recipe(str(file)), "", full=2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", b"extends = 3", "extends = 3: must be the name or path of one recipe, in quotes"),
        ("a.toml", b"extends = ['demo']", "must be the name or path of one recipe"),
        ("a.toml", 'extends = "demo"\nabout = "für"'.encode("cp1252"), "is not in UTF-8 (byte 0xfc in line 2)"),
        ("a.toml", 'extends = "demo"'.encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a.json", b"[]", "must be a table of keys and values, not list"),
        ("a.json", b"[" * 100_000, "is nested too deeply to be a recipe"),
        ("a.toml", b"a = " + b"[" * 100_000, "is nested too deeply to be a recipe"),
        ("a.toml", b"a" + b".a" * 5000 + b" = 1", "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a."),
        ("a.json", b'{"extends":"demo","train":' + b'{"a":' * 400 + b"1" + b"}" * 401, "nested too deeply to be a"),
        ("a.toml", b"a = " + b"9" * 5000, "not readable: Exceeds the limit (4300 digits)"),
        ("a.toml", b"#" * 2_000_000, "larger than 1048576 bytes; is it a recipe?"),
        ("a.toml", b'extends = "demo"\n[data]\nclip_seconds = inf', "data.clip_seconds = inf: must be a finite number"),
        ("a.toml", b'extends = "demo"\nmodels = 3', "models = 3: must be a table, { key = value, ... }"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_recipe(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "a.toml").write_bytes('extends = "demo"'.encode("utf-8-sig"))
    assert load_recipe(str(tmp_path / "a.toml")).data == load_recipe("demo").data


def test_another_format_of_data_keeps_what_the_base_says_of_clips_and_labels(tmp_path):
    (tmp_path / "own.toml").write_text('extends = "demo"\n[data]\nformat = "manifest"\nmanifest = "clips.csv"\n')
    data, base = load_recipe(str(tmp_path / "own.toml")).data, load_recipe("demo").data
    assert (data.labels, data.clip_seconds) == (base.labels, base.clip_seconds) == ("multi", 2.0)


@pytest.mark.parametrize("text", ["2024", "1_000", "1e3", "true", "2024-01-01", "~/a b"])
def test_a_setting_of_a_text_field_is_the_text_as_it_was_typed(text):
    assert load_recipe("demo", [f"data.root={text}"]).data.root == text


def test_a_text_where_a_number_belongs_is_still_a_mistake():
    with pytest.raises(ValueError, match=r"data.test_fold = 'one'"):
        load_recipe("demo", ["data.root=2024", "data.test_fold=one"])
