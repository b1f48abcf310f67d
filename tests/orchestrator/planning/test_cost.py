"""The predicted cost of a run, compared with real runs."""

import json
from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.planning import cost
from orchestrator.planning.checkpoints import checkpoint_bytes
from orchestrator.planning.cost import Clips, count_clips, model_sizes, plan_cost, step_flops
from orchestrator.planning.measure import measure, tensor_bytes
from tests import small
from workloads.data.cache import ClipCache
from workloads.distill.schedule import plan_phases
from workloads.models.size import Size
from workloads.runtime.event_log import read_event_log
from workloads.runtime.opener import LocalFiles
from workloads.train import loop
from workloads.train_step import train_step

TURNS = ("schedule.burn_in=3", "schedule.period=5", "schedule.turns=2")
LIVE = ("edges.0.source=live", "edges.1.source=live")  # for teachers without a moving average
SIZES = {"cnn": Size(100, 1000, 40, 24), "vit": Size(10, 50_000, 7, 5)}
HUNDRED = Clips(train=100, tags=10, val=20, test=30)
DELIVERED = 47 + 2 * (2 * 4 * 30 * 10)  # the weights of SIZES; both models' test logits and labels


@pytest.fixture
def read(monkeypatch):
    """The clips that are read from the cache, whole or in part, in this order."""
    clip_ids, load, load_part = [], ClipCache.load, ClipCache.load_part

    def counted(cache, entry, *part, **options):
        clip_ids.append(entry.clip.clip_id)
        return load_part(cache, entry, *part, **options)

    monkeypatch.setattr(ClipCache, "load", lambda cache, clip_id: clip_ids.append(clip_id) or load(cache, clip_id))
    monkeypatch.setattr(ClipCache, "load_part", counted)
    return clip_ids


def cost_of(recipe, **options):
    clips = count_clips(recipe, LocalFiles(), clips=None, tags=None)
    return plan_cost(recipe, plan_phases(recipe), clips, model_sizes(recipe, tags=clips.tags), **options)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("demo", (*TURNS, *LIVE, "train.checkpoint_every=4", "models.vit.average.kind=none")),
        ("demo", (*TURNS, "compare=true")),
        (
            "demo",
            (*TURNS, *LIVE, "compare=true", 'models.vit.average={kind="best", best=2}', "train.eval_every=2"),
        ),  # a control that begins as a copy has its student's best weights
        ("demo", (*TURNS, "edges=[]")),  # the offloaded model is in the checkpoint too
        (
            "generations",
            ("schedule.steps=6", 'models.vit1.average={kind="best", best=2}', 'models.cnn1.average={kind="best"}'),
        ),
        (
            "one-way",
            (
                "schedule.teacher_steps=3",
                "schedule.steps=5",
                "edges.0.view=clean",
                "augment.roll=0.1",
                "train.shards=2",
            ),
        ),
        ("one-way", ("schedule.teacher_steps=3", "schedule.steps=5", "edges.0.view=clean", "augment={mixup=0.5}")),
        ("one-way", ("schedule.teacher_steps=3", "schedule.steps=5", "train.score_test=false")),
        (
            "mutual",
            ("schedule.burn_in=2", "schedule.steps=5", "schedule.exchange=2", "edges.0.source=snapshot"),
        ),
        ("mutual", ("schedule.burn_in=2", "schedule.steps=3", "edges.0.source=ema", "train.checkpoint_every=1")),
    ],
)
def test_a_run_has_the_planned_cost(tiny, start, read, name, settings):
    recipe = tiny(name, *settings)
    run = start(recipe)
    cost = cost_of(recipe)
    assert loop(run) == "done"

    folder = run.session.work_dir.parent
    saved = sorted((folder / "checkpoints").iterdir())
    sizes = model_sizes(recipe, tags=len(run.prepared.dataset.tags))
    bytes_of = {int(path.name.split("-")[1]): tensor_bytes(path) for path in saved}
    assert bytes_of == {step: checkpoint_bytes(recipe, run.phases, sizes, step) for step in bytes_of}
    delivered = sum(tensor_bytes(path) for path in (folder / "models").iterdir())
    assert (cost.checkpoints, cost.checkpoint_bytes) == (len(saved), bytes_of[run.step])
    assert cost.bytes_written == sum(bytes_of.values()) + delivered

    assert cost.steps == run.step
    assert cost.clips_read == len(read)
    cached = [job.target.stat().st_size for job in run.prepared.cache._entries.values()]
    assert (cost.cache_bytes, cost.bytes_read) == (sum(cached), len(read) * cached[0])
    rows = read_event_log(folder / "events.jsonl")[-1]["models"]
    for model, row in rows.items():
        planned = cost.models[model]
        copied = 3 if model.endswith("_untaught") else 0  # steps of the burn-in, which its student has trained
        assert (planned.params, planned.own_steps, planned.taught_steps) == (
            row["params"],
            row["steps_learned"] - copied,
            row["steps_taught"],
        )


def test_each_clip_of_a_batch_is_read_once_whatever_its_partners(tiny, start, read):
    recipe = tiny("demo", "edges=[]", *TURNS, "augment.mixup=1.0", "train.shards=2", "train.eval_every=100")
    run = start(recipe)
    phase = run.phases[0]
    sources = run.pool.enter_phase(phase)
    for run.step in range(phase.steps):
        train_step(run, phase, sources)
    planned = cost._clips_read(recipe, run.phases, HUNDRED, until=3, whole=False) - 2 * HUNDRED.val  # both validated
    assert len(read) == planned == 3 * 16


def test_flops_are_three_forwards_to_learn_and_one_to_teach(tiny):
    recipe = tiny("one-way", "schedule.teacher_steps=3", "schedule.steps=5", "train.eval_every=4")
    cost = plan_cost(recipe, plan_phases(recipe), HUNDRED, SIZES)
    cnn, vit = cost.models["cnn"], cost.models["vit"]
    assert (cnn.learn_flops, cnn.teach_flops) == (3 * 8 * 6 * 1000, 5 * 8 * 2 * 1000)
    assert (vit.learn_flops, vit.teach_flops) == (5 * 8 * 6 * 50_000, 0)
    assert cnn.score_flops == 2 * 1000 * (20 + 20 + 30)  # at its phase's end; at last on validation and test
    assert vit.score_flops == 2 * 50_000 * (20 + 20 + 20 + 30)  # also after step 4
    assert (cnn.clips_seen, vit.clips_seen, vit.epochs) == (24, 40, 5 / 12)
    assert cost.flops == sum(model.learn_flops + model.teach_flops + model.score_flops for model in (cnn, vit))
    assert cost.hours(tflops=2.0, devices=3) == cost.flops / 6e12 / 3600


@pytest.mark.parametrize(
    ("settings", "teaching"),
    [
        ((), {"cnn": 0, "vit": 0}),  # one forward serves twice
        (("edges.0.source=snapshot", "edges.0.view=clean"), {"cnn": 1, "vit": 0}),
        (("edges.0.source=ema", "edges.1.source=snapshot"), {"cnn": 1, "vit": 1}),
    ],
)
def test_training_and_teaching_share_a_forward_unless_a_copy_teaches(tiny, settings, teaching):
    recipe = tiny("mutual", "schedule.burn_in=0", "schedule.steps=1", *settings)
    (phase,) = plan_phases(recipe)
    forwards = {"cnn": 3 + teaching["cnn"], "vit": 3 + teaching["vit"]}
    assert step_flops(recipe, phase, SIZES) == 8 * 2 * (forwards["cnn"] * 1000 + forwards["vit"] * 50_000)


def test_students_of_the_same_teacher_outputs_share_a_forward(tiny):
    arch = f"{{arch={small.MN}}}"
    edges = 'edges=[{teacher="cnn", student="vit", weight=0.5}, {teacher="cnn", student="other", weight=0.5%s}]'
    for other, forwards in (("", 1), (', view="clean"', 2)):
        recipe = tiny("one-way", f"models.other={arch}", edges % other)
        assert cost._teacher_forwards(plan_phases(recipe)[1], "cnn") == forwards


def test_planned_flops_are_those_of_a_real_step(tiny, start):
    """Transformers, as torch's counter takes the backward of depthwise convolutions for that of full ones. The first
    layer hands no gradient on: hence the tolerance."""
    arch = '{family="vit", dim=64, depth=2, heads=2, pool="avg"}'
    plans = ["schedule.teacher_steps=1", "schedule.steps=2", "edges.0.view=clean", "augment.roll=0.1"]
    recipe = tiny("control-same-family", *plans, *(f"models.{name}.arch={arch}" for name in ("teacher", "vit")))
    run = start(recipe)
    sizes = model_sizes(recipe, tags=10)
    with FlopCounterMode(display=False) as counter:
        run.batches.shard(0, 0).mel(run.pool.train_state("vit").tagger.front_end)
    front_end = counter.get_total_flops()
    for phase, num_spectra in zip(run.phases, (1, 2), strict=True):  # the clean view has another spectrum
        sources = run.pool.enter_phase(phase)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            train_step(run, phase, sources)
        counted = counter.get_total_flops() - num_spectra * front_end
        assert counted == pytest.approx(step_flops(recipe, phase, sizes), rel=0.05)
        run.step = phase.end


def test_a_store_holds_every_view_that_students_use(tiny):
    recipe = tiny("one-way", "schedule.teacher_steps=6", "schedule.steps=15", "train.shard_size=25")  # 4 steps an epoch
    cost = plan_cost(recipe, plan_phases(recipe), HUNDRED, SIZES)
    cnn, vit = cost.models["cnn"], cost.models["vit"]
    assert (cnn.store_view_bytes, cnn.store_views) == (100 * 10 * 2, 5)  # steps 6 to 20 lie in epochs 1 to 5
    assert (vit.store_view_bytes, vit.store_views) == (0, 0)
    clean = replace(recipe, edges=(replace(recipe.edges[0], view="clean"),))
    assert plan_cost(clean, plan_phases(clean), HUNDRED, SIZES).models["cnn"].store_views == 1


def test_the_peak_is_the_newest_the_best_and_one_being_written(tiny):
    recipe = tiny("demo", "edges=[]", *TURNS, "train.checkpoint_every=1", "train.keep_last=2")
    cost = plan_cost(recipe, plan_phases(recipe), HUNDRED, SIZES)
    assert cost.checkpoints == 13
    each = 2 * 40 + 24 + 2 * 7 + 5  # both keep a moving average
    assert cost.bytes_kept == (2 + 2 + 1) * each + DELIVERED
    assert cost.bytes_written == 13 * each + DELIVERED


def test_the_cost_of_a_hundred_thousand_turns_is_counted_by_phase(tiny):
    turns = ("schedule.burn_in=0", "schedule.period=7", "schedule.turns=100000", "train.checkpoint_every=1")
    averages = ("models.vit.average.kind=none", 'models.cnn.average={kind="best", best=3}')
    recipe = tiny("demo", *turns, *LIVE, *averages)
    cost = plan_cost(recipe, plan_phases(recipe), HUNDRED, SIZES)
    growing = 7 * (12 + 40) + 4 * (12 + 64 + 40) + 2 * (12 + 64 + 80)  # first vit; then cnn and 1, 2, 3 averages
    assert cost.checkpoints == 700_000
    assert cost.bytes_written == growing + (700_000 - 13) * (12 + 64 + 120) + DELIVERED
    assert cost.bytes_kept == (2 + 2 + 1) * (12 + 64 + 120) + DELIVERED
    # 58 334 epochs of 12 steps, and turns of 7; only vit teaches in the last epoch, which has 4 steps
    assert (cost.models["cnn"].store_views, cost.models["vit"].store_views) == (58_333, 58_334)


def test_a_short_run_confirms_the_prediction(tiny):
    recipe = tiny("demo", *TURNS)
    cost = cost_of(recipe, until=6)
    found = measure(recipe, cost, model_sizes(recipe, tags=10), files=LocalFiles())
    assert [entry.off for entry in found.compared] == [0] * 7
    assert {entry.what: entry.measured for entry in found.compared}["vit: clips learned from"] == 6 * 8
    assert {entry.what: entry.measured for entry in found.compared}["cnn: clips learned from"] == 3 * 8
    for name, model in cost.models.items():
        measured = {entry.what: entry.measured for entry in found.compared}
        assert measured[f"{name}: multiply-adds a clip"] == model.macs
        assert measured[f"{name}: parameters"] == model.params
    assert found.wrong == ()
    assert found.seconds_per_step > 0
    assert found.tflops > 0
    assert found.files_bytes > cost.checkpoint_bytes


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda size: replace(size, params=round(size.params * 1.02)), ["cnn: parameters", "vit: parameters"]),
        (lambda size: replace(size, params=round(size.params * 1.005)), []),
        (lambda size: replace(size, optimizer_bytes=0), ["checkpoint bytes"]),
        (
            lambda size: replace(size, macs=round(size.macs * 1.02)),
            ["cnn: multiply-adds a clip", "vit: multiply-adds a clip"],
        ),
    ],
)
def test_a_prediction_that_misses_is_found(tiny, tmp_path, monkeypatch, change, wrong):
    honest = cost.model_size
    monkeypatch.setattr(cost, "model_size", lambda *given, **named: change(honest(*given, **named)))
    code, out = invoke(tiny, tmp_path, "--measure", "2", "--json")
    assert out["measured"]["wrong"] == wrong
    assert code == (1 if wrong else 0)


def test_clips_that_were_not_seen_are_found(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "steps_by_phase", lambda phases, until: [(phases[0], 1)])
    code, out = invoke(tiny, tmp_path, "--measure", "3", "--json")
    assert code == 1
    assert out["measured"]["wrong"] == ["cnn: clips learned from", "vit: clips learned from"]


def invoke(tiny, tmp_path, *arguments: str):
    """`antiphon plan` on the small demo, in this process; its exit code and its JSON."""
    from orchestrator.recipes.loader import resolve

    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(resolve(tiny("demo", *TURNS))))
    done = CliRunner().invoke(app, ["plan", str(path), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_the_command_prints_hours_only_for_a_stated_rate(tiny, tmp_path):
    code, out = invoke(tiny, tmp_path)
    assert code == 0
    assert "13 steps" in out
    assert "hours" not in out
    printed = invoke(tiny, tmp_path, "--tflops", "0.5", "--json")[1]
    assert printed["hours"] == printed["flops"] / 0.5e12 / 3600
    assert printed["measured"] is None
    assert printed["clips"] == {"train": 72, "val": 8, "test": 20, "tags": 10}
    assert "1 x 0.5 TFLOP/s" in invoke(tiny, tmp_path, "--tflops", "0.5")[1]


def test_a_measured_run_is_printed(tiny, tmp_path):
    code, out = invoke(tiny, tmp_path, "--measure", "1")
    assert code == 0
    assert "right  checkpoint bytes" in out
    assert "right  vit: multiply-adds a clip" in out
    assert "WRONG" not in out
    assert "times as much as this device reaches" not in out


def test_a_stated_rate_is_compared_with_the_measured_one(tiny, tmp_path):
    code, out = invoke(tiny, tmp_path, "--measure", "1", "--tflops", "1000")
    assert code == 0
    assert "--tflops 1000 is " in out
    assert "times as much as this device reaches" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tflops", "0"), "--tflops 0: must be above 0"),
        (("--measure", "14"), "--measure 14: must be 1 to 13"),
        (("--measure", "0"), "--measure 0: must be 1 to 13"),
        (("--measure", "1", "--clips", "100", "--tags", "3"), "leave one of the two out"),
        (("--clips", "100"), "give both or neither"),
        (("--clips", "0", "--tags", "3"), "each must be 1 or more"),
        (("--clips", "5", "--tags", "3"), "a batch needs as many clips, and only 5"),
    ],
)
def test_mistakes_are_reported(tiny, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=r"--|batch") as caught:
        invoke(tiny, tmp_path, *arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "fix"),
    [
        (2, "--set train.shards=2 --set train.shard_size=4 for steps of 8 clips as now"),
        (3, "--set train.shards=3 --set train.shard_size=SIZE (none keeps the 8 clips of a step)"),
    ],
)
def test_devices_must_divide_the_shards(tiny, tmp_path, devices, fix):
    with pytest.raises(ValueError, match="shards") as caught:
        invoke(tiny, tmp_path, "--devices", str(devices))
    assert str(caught.value) == f"--devices {devices}: train.shards = 1 must divide among them; {fix}"


def test_fewer_than_one_device_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="--devices 0: must be 1 or more"):
        invoke(tiny, tmp_path, "--devices", "0")


def test_a_run_without_test_scores_costs_no_scoring_of_the_test_fold(tiny):
    scored, unscored = (
        tiny("one-way", "schedule.teacher_steps=3", "schedule.steps=5", f"train.score_test={word}")
        for word in ("true", "false")
    )
    with_test, without = (plan_cost(recipe, plan_phases(recipe), HUNDRED, SIZES) for recipe in (scored, unscored))
    assert with_test.models["cnn"].score_flops - without.models["cnn"].score_flops == 2 * 1000 * 30
    assert with_test.models["vit"].score_flops - without.models["vit"].score_flops == 2 * 50_000 * 30
    assert with_test.clips_read - without.clips_read == 2 * 30 + 3  # and those that the report plays
    assert with_test.cache_bytes == without.cache_bytes  # its clips are decoded in both


def test_clips_are_counted_without_any_audio(tiny, tmp_path):
    rows = [f"a{number}.wav,{1 + number % 5},{'dog' if number % 2 else 'rain'},{number}" for number in range(100)]
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,category,src_file", *rows]))
    recipe = tiny("demo", f'data={{format="esc50", root="{tmp_path}"}}')
    assert count_clips(recipe, LocalFiles(), clips=None, tags=None) == Clips(train=72, val=8, test=20, tags=2)


def test_numbers_replace_metadata_that_is_not_at_hand(tiny):
    recipe = tiny("demo", 'data={format="manifest", manifest="/nowhere.csv", labels="multi"}')
    with pytest.raises(ValueError, match=r"/nowhere.csv: no such file.*--clips N \(to train on\) --tags C"):
        count_clips(recipe, LocalFiles(), clips=None, tags=None)
    assert count_clips(recipe, LocalFiles(), clips=2000, tags=527) == Clips(train=2000, tags=527)


def test_a_teacher_of_profiles_alone_needs_no_store_of_logits(tiny):
    edges = "edges=[{teacher='vit', student='cnn', carries='temporal'}, {teacher='cnn', student='vit'}]"
    planned = cost_of(tiny("demo", edges, "schedule={kind='mutual', burn_in=0, steps=4}"))
    assert planned.models["vit"].store_view_bytes == 0 < planned.models["cnn"].store_view_bytes
    assert planned.models["vit"].taught_steps == 4
