"""The driver of `antiphon init`: looks at a folder, writes a manifest and a recipe, and counts what a run costs."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.recipes.loader import load_recipe
from orchestrator.scaffold.clips import SHOWN, Clips, make_clips, manifest_text
from orchestrator.scaffold.cost import RunCost, cost_at_same_speed, run_cost
from orchestrator.scaffold.published import Published, published_layout
from orchestrator.scaffold.questions import Ask
from orchestrator.scaffold.recipe_text import comment, quoted, recipe_text
from orchestrator.scaffold.sizes import LEAST_STEPS, Machine, Sizes, choose_sizes, val_share
from orchestrator.scaffold.sounds import Sounds, find_sounds, require_text
from orchestrator.scaffold.validation import choose_slice
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.data import Data
from workloads.data.manifest import read_dataset
from workloads.runtime.atomic_files import replace_text
from workloads.runtime.exit_signals import exit_on_signals
from workloads.runtime.text import name_some

TIMING = "writing, and training a few steps to time them"
MOST_MINUTES = 60.0  # of a first run; steps are left out beyond that


@dataclass(frozen=True)
class FirstRecipe:
    """What was written, and what a run of it takes."""

    recipe: Path
    manifest: Path | None  # None: a published data set, read as it is
    name: str
    sounds: Sounds
    sizes: Sizes
    cost: RunCost
    labels: str
    tags: int
    clips: int
    about: tuple[str, ...]  # what was found, and is worth knowing


def write_first_recipe(
    root: str,
    out: Path,
    ask: Ask,
    *,
    name: str = "",
    tags_from: str = "",
    source_from: str = "",
    separator: str = "",
    most_minutes: float = MOST_MINUTES,
    say: Callable[[str], None] = lambda line: None,
) -> FirstRecipe:
    """Write `NAME.toml`, and `NAME.csv` unless the folder is a published data set, into the folder `out`.

    Nothing is written where a file of that name exists, or where the recipe could not run, and no file is left where
    the command is ended. For the main thread. Raises ValueError with what is missing.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r}: is a file; name the folder that the recipe is written into")
    sounds = find_sounds(root)
    require_text("--out", str(out.absolute()))
    name = slug(name or Path(sounds.root).name)
    recipe_file, manifest_file = out / f"{name}.toml", out / f"{name}.csv"
    published = published_layout(sounds.others)
    for file in (recipe_file,) if published else (recipe_file, manifest_file):
        if file.exists():
            raise ValueError(f"{file}: already exists; move it away, or give another --name or --out")
    if published:
        options = {"--tags-from": tags_from, "--source-from": source_from, "--separator": separator}
        if given := [option for option, value in options.items() if value]:
            raise ValueError(f"{given[0]}: DIR is {published.format}, whose own tables say that; leave it out")
        say(TIMING)
        with exit_on_signals():
            return _write_published(published, sounds, recipe_file, name, most_minutes)
    clips = make_clips(sounds, ask, tags_from=tags_from, source_from=source_from, separator=separator)
    say(TIMING)
    out.mkdir(parents=True, exist_ok=True)
    with exit_on_signals():
        try:
            replace_text(manifest_file, manifest_text(clips))
            return _write(_Draft.of_manifest(sounds, clips, manifest_file), recipe_file, name, most_minutes)
        except BaseException:  # Ctrl-C too: the next try would find a file that it must not overwrite
            manifest_file.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class _Draft:
    """What a recipe is written for."""

    sounds: Sounds
    manifest: Path | None
    data: list[str]  # lines of the table [data]
    labels: str
    counts: Counter[str]
    clips: int
    val_share: float
    about: tuple[str, ...]

    @classmethod
    def of_manifest(cls, sounds: Sounds, clips: Clips, manifest: Path) -> "_Draft":
        about = f"# tags: {clips.tags_from.where}; recordings: " + (
            clips.source_from.where if clips.source_from else "each clip is its own"
        )
        data = [
            comment(about),
            'format = "manifest"',
            f"manifest = {quoted(str(manifest.absolute()))}",
            f"root = {quoted(sounds.root)}",
            f'labels = "{clips.labels}"  # ' + ("one tag a clip" if clips.labels == "single" else "any number of tags"),
            f"test_fold = {clips.test_fold}",
        ]
        found = [about.removeprefix("# "), *clips.notes]
        share = val_share([row for row in clips.rows if row.fold != clips.test_fold])
        read = Data(
            format="manifest",
            manifest=str(manifest.absolute()),
            root=sounds.root,
            labels=clips.labels,  # type: ignore[arg-type]
            test_fold=clips.test_fold,
            val_share=share,
        )
        number, lost = choose_slice(read_dataset(read, FsspecFiles()), read)
        if number:
            data.append(f"val_slice = {number}  # the first that leaves training most tags")
        if lost:
            found.append(
                f"tags that only validation has, beside the test fold: {name_some(lost, SHOWN)}; no model learns them"
            )
        return cls(sounds, manifest, data, clips.labels, clips.counts, len(clips.rows), share, tuple(found))

    @classmethod
    def of_published(cls, sounds: Sounds, published: Published) -> "_Draft":
        data = [f'format = "{published.format}"', f"root = {quoted(sounds.root)}", f'labels = "{published.labels}"']
        read = read_dataset(
            Data(format=published.format, root=sounds.root, labels=published.labels),  # type: ignore[arg-type]
            FsspecFiles(),
        )
        counts = Counter(tag for clip in read.clips for tag in clip.tags)
        about = (f"layout of {published.format}: its own tables say tags, folds and recordings",)
        share = val_share([clip for clip in read.clips if clip.fold != Data.test_fold])
        return cls(sounds, None, data, published.labels, counts, len(read.clips), share, about)


def _write_published(
    published: Published, sounds: Sounds, recipe_file: Path, name: str, most_minutes: float
) -> FirstRecipe:
    recipe_file.parent.mkdir(parents=True, exist_ok=True)
    return _write(_Draft.of_published(sounds, published), recipe_file, name, most_minutes, published=published)


def _write(
    draft: _Draft, recipe_file: Path, name: str, most_minutes: float, *, published: Published | None = None
) -> FirstRecipe:
    """Write the recipe, try it for a few steps, and shorten it where it would take too long."""
    sizes = choose_sizes(
        draft.sounds.headers,
        Machine.here(),
        clips=draft.clips,
        val_share=draft.val_share,
    )
    try:
        replace_text(recipe_file, _text(draft, sizes, recipe_file, name, published))
        cost = _cost(recipe_file, draft)
        while cost.minutes > most_minutes and sizes.steps > LEAST_STEPS:
            share = max(0.0, most_minutes - cost.decode_minutes) / cost.train_minutes
            sizes = sizes.with_steps(min(int(sizes.steps * share), sizes.steps - 1))
            replace_text(recipe_file, _text(draft, sizes, recipe_file, name, published))
            cost = cost_at_same_speed(load_recipe(str(recipe_file)), FsspecFiles(), cost)
    except BaseException:
        recipe_file.unlink(missing_ok=True)
        raise
    return FirstRecipe(
        recipe=recipe_file,
        manifest=draft.manifest,
        name=name,
        sounds=draft.sounds,
        sizes=sizes,
        cost=cost,
        labels=draft.labels,
        tags=len(draft.counts),
        clips=draft.clips,
        about=(*draft.about, *_about_time(cost, most_minutes)),
    )


def _about_time(cost: RunCost, most_minutes: float) -> list[str]:
    """What to say where no run can be as short as is wanted."""
    if cost.minutes <= most_minutes:
        return []
    parts = f"decoding takes {cost.decode_minutes:.1f} of them, the shortest schedule {cost.train_minutes:.1f}"
    return [f"longer than --minutes {most_minutes:g}: {parts}"]


def _cost(recipe_file: Path, draft: _Draft) -> RunCost:
    return run_cost(load_recipe(str(recipe_file)), FsspecFiles(), root=draft.sounds.root, paths=draft.sounds.paths)


def _text(draft: _Draft, sizes: Sizes, file: Path, name: str, published: Published | None) -> str:
    text = recipe_text(
        sizes,
        name=name,
        file=file,
        folder=draft.sounds.root,
        data=draft.data,
        clips=draft.clips,
        tags=len(draft.counts),
        lengths=lengths(draft.sounds),
        rates=rates(draft.sounds),
    )
    if published and published.has_validation:  # no setting says it too
        text = "\n".join(line for line in text.split("\n") if not line.startswith("val_share"))
    return text


def lengths(sounds: Sounds) -> str:
    """How long the sounds are: 0.31 to 0.62 s."""
    found = sorted(header.seconds for header in sounds.headers)
    short, long = f"{found[0]:.3g}", f"{found[-1]:.3g}"
    return f"{short} s" if short == long else f"{short} to {long} s, the median {found[len(found) // 2]:.3g} s"


def rates(sounds: Sounds) -> str:
    """The rates of the sounds, the most frequent first: 44,100 Hz (30), 8,000 Hz (2)."""
    counts = Counter(header.rate for header in sounds.headers)
    return ", ".join(f"{rate:,} Hz ({count})" for rate, count in counts.most_common(4))


def slug(name: str) -> str:
    """A name for files and runs: letters of ASCII, digits, dashes and underscores."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:60].lower() or "recordings"
