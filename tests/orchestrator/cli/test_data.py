"""`antiphon data check`, `data stats` and the dry run on a stranger's data: short clips, a low rate, no folds."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orchestrator.recipes.loader import load_recipe
from workloads.data.manifest import read_dataset
from workloads.data.splits import require_two_tags, split
from workloads.distill.schedule import plan_phases
from workloads.runtime.opener import LocalFiles


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table of 60 clips of 0.4 s at 8 kHz, in a folder below the current one; settings for it, without the root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("words/wav").mkdir(parents=True)
    rows = ["clip_id,path,tags"]
    for number in range(60):
        samples = 0.1 * np.random.default_rng(number).standard_normal(3200)
        soundfile.write(f"words/wav/{number}.wav", samples, 8000)
        rows.append(f"c{number:02},wav/{number}.wav,{['yes', 'no', 'up'][number % 3]}")
    Path("words/clips.csv").write_text("\n".join(rows) + "\n")
    settings = {"format": "manifest", "manifest": "words/clips.csv", "labels": "single", "cache": "cache"}
    return [word for key, value in settings.items() for word in ("--set", f"data.{key}={value}")]


def test_one_tag_alone_is_refused_before_anything_is_decoded(words: list[str], antiphon) -> None:
    """Where each clip has one tag: whatever a model says, the tag's probability is 1. With several a clip none may be
    there."""
    table = Path("words/clips.csv")
    table.write_text(table.read_text().replace(",no\n", ",yes\n").replace(",up\n", ",yes\n"))
    data = [*words, "--set", "data.root=words"]
    one_word = ["--set", "data.format=keywords", "--set", 'data.words=["yes"]', "--set", "data.labels=single"]
    for command in (
        ["data", "check", "demo", *data],
        ["run", "demo", "--dry-run", *data],
        ["run", "demo", "--local", "--tracking", "none", *data],
        ["plan", "demo", "--tflops", "0.1", *data],
        ["data", "check", "demo", *one_word],
    ):
        done = antiphon(*command)
        assert (done.code, done.out) == (2, ""), command
        assert (
            "data.labels = 'single': one of the tags is each clip's, and there is only yes: nothing to tell apart; add "
            "clips with other tags, or set data.labels = 'multi'"
        ) in done.err
    assert not Path("cache").exists()
    dataset = read_dataset(load_recipe("demo", [word for word in data if word != "--set"]).data, LocalFiles())
    with pytest.raises(ValueError, match="there is only yes"):
        require_two_tags(dataset)
    require_two_tags(replace(dataset, tags=("no", "yes")))  # those of a model, or of a store that teaches
    require_two_tags(replace(dataset, labels="multi"))


def test_each_message_leads_a_stranger_to_the_next_step(words: list[str], antiphon) -> None:
    check = ["data", "check", "demo", *words]
    missing = antiphon(*check)
    assert missing.code == 2
    assert f"looked for at {Path.cwd()}/wav/0.wav" in missing.err
    root = ["--set", missing.err.split("--set ")[1].strip()]
    assert root[1] == "data.root=words"
    dry_run = ["run", "demo", "--dry-run", *words, *root]
    assert dict(warned(antiphon(*dry_run).err)).keys() == {"column source", "column fold"}, "nothing is decoded yet"

    checked = antiphon(*check, *root)
    assert checked.code == 0
    assert max(map(len, checked.out.splitlines())) <= 80
    for cells in (["seconds", "0.4 to 0.4, median 0.4; 24 seconds in all"], ["sample rates", "8000 Hz (60)"]):
        assert cells in [[cell.strip() for cell in line.split("│")[1:-1]] for line in checked.out.splitlines()]
    warnings = dict(warned(checked.err))
    assert warnings.keys() == {"column source", "column fold", "data.clip_seconds = 2", "sample rates"}
    again = antiphon(*dry_run)
    assert warned(again.err) == warned(checked.err)
    assert f"{len(plan_phases(load_recipe('demo')))} phases" in again.out

    told = ["--set", warnings["data.clip_seconds = 2"].split("--set ")[1].split()[0]]
    mended = antiphon(*check, *root, *told, "--json")
    summary = json.loads(mended.out)
    assert dict(warned(mended.err)).keys() == {"column source", "column fold", "sample rates"}
    assert [f"warning: {line}" for line in summary["warnings"]] == mended.err.splitlines()
    assert summary["statistics"]["rates"] == {"8000": 60}
    assert summary["durations"]["padding"] == pytest.approx(0, abs=1e-9)
    assert summary["statistics"]["tags"]["up"]["clips"] == 20


def test_the_statistics_name_silent_clips_and_print_settings_that_the_recipe_takes(words: list[str], antiphon) -> None:
    soundfile.write("words/wav/7.wav", np.zeros(3200), 8000)
    root = ["--set", "data.root=words", "--set", "data.clip_seconds=0.4"]
    printed = antiphon("data", "stats", "demo", *words, *root)
    assert printed.code == 0, printed.err
    assert "silent (peak below -60 dB): 1 of 60 clips (1.7%): c07" in printed.out.splitlines()
    assert "clipped (3 samples or more in a row at full scale): 0 of 60 clips (0.0%)" in printed.out.splitlines()
    found = json.loads(antiphon("data", "stats", "demo", *words, *root, "--json").out)
    assert found["levels"]["silent"] == ["c07"]
    assert found["statistics"]["rates"] == {"8000": 60}
    assert found["front_ends"].keys() == {"cnn", "vit"}, "their controls have the same settings"
    for name, front_end in found["front_ends"].items():
        line = "  " + " ".join(f"--set {setting}" for setting in front_end["set"])
        assert line in printed.out.splitlines()
        loaded = load_recipe("demo", front_end["set"]).models[name].front_end
        assert (loaded.mean, loaded.std) == pytest.approx((front_end["mean"], front_end["std"]), rel=1e-6)


def test_the_check_says_how_many_clips_are_unlabelled(words: list[str], antiphon) -> None:
    table = Path("words/clips.csv")
    header, *rows = table.read_text().splitlines()
    unlabelled = [f"{row.rsplit(',', 1)[0]},,no" if n < 20 else f"{row}," for n, row in enumerate(rows)]
    table.write_text("\n".join([f"{header},labelled", *unlabelled]) + "\n")
    check = ["data", "check", "demo", *words, "--set", "data.root=words"]
    summary = json.loads(antiphon(*check, "--json").out)
    assert summary["unlabelled"] + summary["left_out"] == 20
    assert summary["left_out"] > 0
    shared = antiphon(*check, "--set", "data.labelled_share=0.5")
    (row,) = (line for line in shared.out.splitlines() if line.startswith("│ unlabelled"))
    train = summary["clips"]["train"]
    labelled = sum(tag["parts"]["train"] // 2 for tag in summary["statistics"]["tags"].values())
    assert row.split("│")[2].strip() == (
        f"{train - labelled} of {train} train clips ({labelled / train:.1%} labelled), {summary['left_out']} left out"
    )
    assert "column labelled" in dict(warned(shared.err))
    dropped = json.loads(antiphon(*check, "--set", "data.unlabelled=leave_out", "--json").out)
    assert (dropped["unlabelled"], dropped["left_out"]) == (0, 20)
    assert dropped["clips"]["train"] == train - summary["unlabelled"]
    assert dropped["fingerprint"] == summary["fingerprint"]
    assert summary["statistics"]["untagged"] == 0


def test_a_run_that_has_no_label_to_learn_from_is_refused_before_it_starts(words: list[str], antiphon) -> None:
    """Labels are known of test and validation clips only; the teacher of the last command learns from nothing."""
    settings = [*words, "--set", "data.root=words", "--set", "data.labels=multi"]
    files = LocalFiles()
    data = load_recipe("demo", [word for word in settings if word != "--set"]).data
    train = {clip.path for clip in split(read_dataset(data, files), data).train}
    rows = []
    for n in range(60):
        cells = ("no,up", "up,no")[n % 2]
        rows.append(f"c{n:02},wav/{n}.wav,{',' if f'wav/{n}.wav' in train else cells}")
    Path("words/clips.csv").write_text("\n".join(["clip_id,path,tags,absent", *rows]) + "\n")
    refused = antiphon("run", "demo", "--dry-run", *settings)
    assert refused.code == 2
    assert f"no label of the {len(train)} training clips is known, and cnn, vit would learn" in refused.err
    frozen = ("schedule.teacher_steps=0", "models.cnn.init=cnn.safetensors", "edges.0.weight=1.0", "compare=true")
    only_taught = [word for value in frozen for word in ("--set", value)]
    done = antiphon("run", "one-way", "--dry-run", *settings, *only_taught)
    assert done.code == 0
    assert "no label of a training clip is known, so there are no untaught controls to compare with" in done.err


def test_clips_too_short_for_a_model_are_refused_by_every_door_before_anything_is_read(
    words: list[str], antiphon
) -> None:
    for door in (["run", "demo", "--dry-run"], ["plan", "demo"], ["search", "search-demo"], ["data", "stats", "demo"]):
        refused = antiphon(*door, *words, "--set", "data.clip_seconds=0.1")
        assert refused.code == 2
        assert "data.clip_seconds = 0.1: models.vit (vit on logmel64): patch = 16" in refused.err
        assert "--set data.clip_seconds=0.16" in refused.err


def test_a_dry_run_where_the_table_is_not_says_so(tmp_path: Path, antiphon) -> None:
    done = antiphon("run", "esc10", "--dry-run", "--set", f"data.root={tmp_path}")
    assert done.code == 0
    assert "note: the data is not checked" in done.err


def warned(err: str) -> list[tuple[str, str]]:
    """The warnings on stderr: subject, text."""
    lines = [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]
    return [(line.split(":")[0], line) for line in lines]


def test_of_very_many_tags_the_rarest_and_the_most_frequent_are_printed(
    words: list[str], antiphon, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"c{n:02},wav/{n}.wav,all;{';'.join(f't{tag:02}' for tag in range(60) if n <= tag)}" for n in range(60)]
    Path("words/clips.csv").write_text("\n".join(["clip_id,path,tags", *rows]) + "\n")
    checked = antiphon("data", "check", "demo", *words, "--set", "data.root=words", "--set", "data.labels=multi")
    assert checked.code == 0, checked.err
    table = checked.out.split("fold")[-1].split("fingerprint")[0].splitlines()[3:]
    names = [line.strip().split("  ")[0] for line in table if line.strip()]
    assert names == [
        *(f"t{n:02}" for n in range(20)),
        "... 21 more",
        *(f"t{n:02}" for n in range(41, 59)),
        "all",
        "t59",
    ]
