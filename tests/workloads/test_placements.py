"""Models on different workers learn what they learn together, bit for bit: real processes that exchange over gloo."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests import placed, small
from tests.workloads.test_invariants import SCHEDULES, short
from workloads.config.placement import Service
from workloads.runtime.event_log import read_event_log
from workloads.runtime.opener import LocalFiles

FEW = ("data.synthetic_clips=60", "train.eval_every=3", "train.checkpoint_every=4")
ALL_KINDS = (  # each way carries something else beside logits, and one edge asks for the other's average
    "edges=[{teacher='cnn', student='vit', weight=0.3}, {teacher='vit', student='cnn', weight=0.3, source='ema'},"
    " {teacher='cnn', student='vit', carries='embedding', loss='cosine'},"
    " {teacher='vit', student='cnn', carries='temporal'}]",
    "models.vit.average={kind='ema', decay=0.5}",
)
FRAMES = (
    "data.labels=multi",
    f"models.cnn.arch={small.FRAME_MN}",
    "models.vit.arch={family='vit', dim=16, depth=1, heads=2, frame_pool='max'}",
    "models.cnn.frame_labels=true",
    "edges=[{teacher='cnn', student='vit', carries='frames'}, {teacher='vit', student='cnn', carries='frames'}]",
)
IN_TIME = (  # what a frozen teacher says in time, of the view that the student hears and of clips that nobody rolled
    *FRAMES[:3],
    "edges=[{teacher='cnn', student='vit', carries='frames', view='clean'},"
    " {teacher='cnn', student='vit', carries='temporal', gate='entropy', weight=1.0}]",
    "schedule={kind='one_way', teachers=['cnn'], teacher_steps=3, steps=6}",
    "augment.roll=0.3",
)
CLEAN = ("edges.0.view=clean", "augment.roll=0.2", "train.loaders=1", "train.log_every=2")
SNAPSHOTS = ("edges.0.source=snapshot", "schedule.exchange=2", "train.checkpoint_every=2")


def cases(tiny):
    """By name: a run of every kind of schedule, and what an edge may carry and from where."""
    return {name: case(tiny, name) for name in CASES}


def case(tiny, name, *settings):
    recipe, own = OWN_SETTINGS.get(name, (name, ()))
    return short(tiny, recipe, *FEW, *own, *settings)


OWN_SETTINGS = {  # of a case: the shipped recipe and what differs from it
    "one-way": ("one-way", CLEAN),
    "mutual": ("mutual", ALL_KINDS),
    "frames": ("mutual", FRAMES),
    "in-time": ("one-way", IN_TIME),
    "snapshots": ("mutual", SNAPSHOTS),
    "controls": ("demo", ("compare=true", "edges.1.gate=better_on_clip")),
}
CASES = (*SCHEDULES, "frames", "snapshots", "controls")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("placements")


@pytest.fixture
def colocated(folder, tiny):
    """Folder of a case's run in one worker that holds all models."""

    def trained(name: str) -> Path:
        own = folder / "colocated" / name
        if not own.exists():
            placed.run_here(case(tiny, name), own, 0, 1, LocalFiles())
        return own

    return trained


@pytest.fixture
def split(folder, tiny) -> Path:
    """Folder of the same runs on two workers, one for each family; trained once for all tests."""
    if not (folder / "split").exists():
        recipes = {name: replace(recipe, placement="split") for name, recipe in cases(tiny).items()}
        assert placed.train(folder / "split", recipes, workers=2) == [0, 0], errors(folder / "split")
    return folder / "split"


def errors(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("meet-*-errors-*")))


@pytest.mark.parametrize("name", CASES)
def test_split_is_colocated_bit_for_bit(colocated, split, name):
    whole = placed.records(colocated(name))
    assert len([record for record in whole if record["kind"] == "metrics"]) >= 6
    assert placed.records(split / name) == whole
    files = placed.tensor_files(colocated(name))
    assert len(files) > 4
    assert placed.tensor_files(split / name) == files


@pytest.mark.slow
def test_two_workers_a_family_share_the_shards(tiny, colocated, folder):
    """Two workers a family with a shard each, and two workers with all models: the same as one with both shards."""
    recipe = short(tiny, "mutual", *FEW, *ALL_KINDS, "train.shards=2", "train.bad_numbers=skip")
    placed.run_here(recipe, folder / "one" / "mutual", 0, 1, LocalFiles())
    for workers, placement in ((2, "colocated"), (4, "split")):
        own = folder / f"{workers}"
        placed_recipe = replace(recipe, placement=placement)
        assert placed.train(own, {"mutual": placed_recipe}, workers=workers) == [0] * workers, errors(own)
    assert placed.records(folder / "4" / "mutual") == placed.records(folder / "2" / "mutual")
    assert placed.tensor_files(folder / "4" / "mutual") == placed.tensor_files(folder / "2" / "mutual")
    whole, shared = (placed.records(folder / number / "mutual") for number in ("one", "4"))
    assert [record.get("step") for record in shared] == [record.get("step") for record in whole]
    for one, other in zip(whole, shared, strict=True):
        if one["kind"] == "metrics":  # sums of two gradients are rounded, in which order does not matter
            assert other["values"] == pytest.approx(one["values"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_split_run_continues_with_the_same_bits(tiny, colocated, tmp_path, victim):
    """The last checkpoint has a snapshot of the model that rank 0 does not hold; the other worker ends by itself."""
    recipes = {"snapshots": replace(case(tiny, "snapshots"), placement="split")}
    codes = placed.train(tmp_path / "run", recipes, workers=2, kill={victim: 5})
    assert codes[victim] == -9
    assert codes[1 - victim] not in (0, None)
    saved = [path.parent.name for path in (tmp_path / "run" / "snapshots").glob("checkpoints/*/COMMITTED.json")]
    assert max(saved) == "step-00000004-attempt-1"
    assert placed.train(tmp_path / "run", recipes, workers=2) == [0, 0], errors(tmp_path / "run")
    _same_end(tmp_path / "run" / "snapshots", colocated("snapshots"), resumed_from=4)


def test_a_run_continues_under_another_placement(tiny, colocated, tmp_path):
    recipe = case(tiny, "snapshots")
    split, own = replace(recipe, placement="split"), tmp_path / "run" / "snapshots"
    assert placed.train(tmp_path / "run", {"snapshots": split}, workers=2, until=3) == [0, 0], errors(tmp_path / "run")
    placed.run_here(recipe, own, 0, 1, LocalFiles(), until=5)
    assert placed.train(tmp_path / "run", {"snapshots": split}, workers=2) == [0, 0], errors(tmp_path / "run")
    _same_end(own, colocated("snapshots"), resumed_from=5)


def _same_end(folder: Path, whole: Path, *, resumed_from: int) -> None:
    """The result of a resumed run, and its last checkpoint, are those of the whole one."""
    result, expected = placed.records(folder)[-1], placed.records(whole)[-1]
    assert result.pop("resumed_from_step") == resumed_from
    assert expected.pop("resumed_from_step") == 0
    assert result == expected
    started = [record["step"] for record in read_event_log(folder / "events.jsonl") if record["kind"] == "start"]
    assert started[-1] == resumed_from
    files = [
        {path.name: path.read_bytes() for path in run.glob(f"checkpoints/step-{expected['steps']:08d}-*/*.safetensors")}
        for run in (folder, whole)
    ]
    assert len(files[0]) >= 3
    assert files[0] == files[1]


SERVED = {  # frozen teachers: of phases in which they do not train, or copies
    "one-way": (),
    "alternate": (),
    "generations": (),
    "in-time": (),
    "snapshots": ("edges.1.source=snapshot",),
    "controls": (),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("alternate", "snapshots", "in-time") else pytest.param(name, marks=pytest.mark.slow)
        for name in SERVED
    ],
)
def test_served_teachers_are_those_in_the_worker_bit_for_bit(tiny, colocated, folder, name):
    recipe = case(tiny, name, *SERVED[name])
    whole = folder / "whole" / name if SERVED[name] else colocated(name)
    if SERVED[name]:
        placed.run_here(recipe, whole, 0, 1, LocalFiles())
    served = replace(recipe, placement="service", service=Service(actors=2, prefetch=2))
    servers, own = placed.ServersHere(served), folder / "served" / name
    run = placed.run_here(served, own, 0, 1, LocalFiles(), teachers=servers)
    taught = [phase for phase in run.phases if phase.teachers]
    assert [list(dict.fromkeys(names)) for names in servers.taught] == [list(phase.teachers) for phase in taught]
    assert servers.asked == [(step, 0) for phase in taught for step in range(phase.start, phase.end)]
    assert placed.records(own) == placed.records(whole)
    assert placed.tensor_files(own) == placed.tensor_files(whole)


def test_numbers_that_are_bad_on_one_worker_end_all(tiny, tmp_path):
    """Of the Transformer alone, which rank 0 does not hold: in a step that is skipped, then at validation."""
    huge = ("models.vit.optimizer.lr=1e38", "models.vit.optimizer.warmup=0", "train.bad_numbers=skip")
    recipe = short(tiny, "mutual", *FEW, *huge, "placement=split")
    assert placed.train(tmp_path / "run", {"mutual": recipe}, workers=2) == [1, 1]
    for path in (tmp_path / "run").glob("meet-*-errors-*"):
        assert "the model's logits of" in path.read_text()
    (bad,) = [record for record in placed.records(tmp_path / "run" / "mutual") if record["kind"] == "bad"]
    assert bad["models"] == ["vit"]


@pytest.mark.parametrize(
    ("name", "settings", "mistake"),
    [
        (
            "mutual",
            ("placement=service",),
            "edges cnn-to-vit: source = 'live': .* under schedule mutual cnn trains while",
        ),
        ("demo", ("placement=service", "edges=[]"), "placement = 'service': no model teaches"),
        ("alternate", ("placement=service",), "placement = 'service': needs Ray"),
        ("alternate", ("placement=split",), "--workers 1: placement = 'split' has 2 groups of models"),
    ],
)
def test_what_cannot_be_placed_so_is_refused_before_the_first_step(tiny, start, name, settings, mistake):
    with pytest.raises(ValueError, match=mistake):
        start(short(tiny, name, *settings))


def test_servers_that_read_other_clips_are_refused(tiny, tmp_path):
    recipe = short(tiny, "alternate", *FEW, "placement=service")
    servers = placed.ServersHere(replace(recipe, data=replace(recipe.data, synthetic_clips=61)))
    with pytest.raises(ValueError, match="the servers of the teachers read other clips than the workers"):
        placed.run_here(recipe, tmp_path / "run", 0, 1, LocalFiles(), teachers=servers)


def test_an_answer_about_other_clips_ends_the_run(tiny, tmp_path):
    """As a server with another version of the views would give it."""
    recipe = short(tiny, "alternate", *FEW, "placement=service")
    servers = placed.ServersHere(recipe)
    ask = servers.ask
    servers.ask = lambda step, index: ask(step + 1, index)
    with pytest.raises(RuntimeError, match="the server of the teachers has read other clips"):
        placed.run_here(recipe, tmp_path / "run", 0, 1, LocalFiles(), teachers=servers)


def test_a_served_run_that_was_stopped_within_a_phase_continues_with_the_same_bits(tiny, colocated, tmp_path):
    recipe = case(tiny, "snapshots", "edges.1.source=snapshot")
    placed.run_here(recipe, tmp_path / "whole", 0, 1, LocalFiles())
    served, own = replace(recipe, placement="service"), tmp_path / "run"
    for until in (4, None):  # steps 4 and 5 have the same snapshots, which are in the checkpoint
        placed.run_here(served, own, 0, 1, LocalFiles(), until=until, teachers=placed.ServersHere(served))
    _same_end(own, tmp_path / "whole", resumed_from=4)
