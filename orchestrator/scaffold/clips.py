"""The clips of a manifest: the sounds of a folder with tags, recordings and folds. Reads tables, writes nothing."""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.scaffold.labels import LEAST_SOURCES, Tags, find_sources, find_tags
from orchestrator.scaffold.parts import FOLD_NAME, SPLIT_WORDS, TEST_WORDS, TIME_COLUMNS, Part, folder_parts, name_parts
from orchestrator.scaffold.questions import Ask
from orchestrator.scaffold.sounds import Sounds
from orchestrator.scaffold.tables import find_tables
from workloads.runtime.rng import keyed_generator
from workloads.runtime.text import name_some

FOLDS = 5
TEST, TRAIN = 1, 2  # folds of a data set with a split of its own
SHOWN = 3
FOLD_NUMBER = re.compile(r"([0-9]{1,9})(?:\.0+)?")
COLUMNS = ("clip_id", "path", "tags", "source", "fold")


@dataclass(frozen=True)
class Clip:
    """One row of the manifest."""

    path: str
    tags: tuple[str, ...]
    source: str
    fold: int


@dataclass(frozen=True)
class Clips:
    """The rows of the manifest, where they are from, and what is worth knowing of them."""

    rows: tuple[Clip, ...]
    labels: str
    tags_from: Part
    source_from: Part | None
    notes: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """Clips of each tag."""
        return Counter(tag for row in self.rows for tag in row.tags)

    @property
    def test_fold(self) -> int:
        """The lowest fold."""
        return min(row.fold for row in self.rows)


def make_clips(sounds: Sounds, ask: Ask, *, tags_from: str = "", source_from: str = "", separator: str = "") -> Clips:
    """What the folder's tables, folders and file names say of its sounds; asks at most three questions.

    Raises ValueError where they say too little to train and to score on: no tags, one class, too few recordings.
    """
    tables, problems = find_tables(sounds.root, sounds.others, sounds.paths)
    table_parts = [part for table in tables[:1] for part in table.parts]
    path_parts = [*folder_parts(sounds.paths), *name_parts(sounds.paths)]
    if not table_parts and problems and not any(part.groups for part in path_parts if part.key != "name"):
        raise ValueError(problems[0])  # a table was meant, and cannot be read
    parts = [*table_parts, *path_parts]
    tags = find_tags(parts, ask, tags_from=tags_from, separator=separator)
    source = find_sources(parts, tags, ask, source_from=source_from)
    sources = _sources(tags, source)
    folds, about_folds = _folds(parts, tags, sources)
    rows = tuple(Clip(path, own, sources[path], folds[path]) for path, own in sorted(tags.tags.items()))
    clips = Clips(rows, tags.labels, tags.part, source, ())
    table_notes = [f"{tables[0].file}: {tables[0].missing} rows name files that are not there"] if tables else []
    notes = (
        *(f"not read: {problem}" for problem in problems),
        *(note for note in table_notes if tables[0].missing),
        *_about_times(table_parts),
        *_left_out(sounds, tags),
        *about_folds,
        *_about_tags(clips),
    )
    return Clips(rows, tags.labels, tags.part, source, notes)


def manifest_text(clips: Clips) -> str:
    """The manifest as CSV, in the columns that `data.format = "manifest"` reads."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in clips.rows:
        path = f"./{row.path}" if row.path.startswith("~") else row.path  # else it would mean a home folder
        writer.writerow((row.path, path, ";".join(row.tags), row.source, row.fold))
    return file.getvalue()


def _sources(tags: Tags, part: Part | None) -> dict[str, str]:
    """The recording of each sound; its own path where nothing says it."""
    return {path: (part.values.get(path, "") if part else "") or path for path in tags.tags}


def _folds(parts: Sequence[Part], tags: Tags, sources: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """The fold of each sound, as the data set says or dealt out by tag in whole recordings; and what to say of it."""
    notes: list[str] = []
    for part in parts:
        if part.says_folds and part.key != tags.part.key:
            folds, problem = _own_folds(part, tags, sources)
            if not problem:
                return folds, [*notes, f"folds: {part.where}"]
            notes.append(f"{part.where}: not used for folds, since {problem}")
    return _deal(tags, sources), notes


def _own_folds(part: Part, tags: Tags, sources: Mapping[str, str]) -> tuple[dict[str, int], str]:
    """The folds that a part says, by number or by which sounds test; and why they cannot be used, empty if they can."""
    by_words = any(text.casefold() in TEST_WORDS for text in part.counts)
    folds: dict[str, int] = {}
    for path in tags.tags:
        text = part.values.get(path, "")
        number = FOLD_NUMBER.fullmatch(text) or FOLD_NAME.fullmatch(text)
        if by_words and text.casefold() in SPLIT_WORDS:
            folds[path] = TEST if text.casefold() in TEST_WORDS else TRAIN
        elif number and part.column != "subset":
            folds[path] = int(number[1])
        else:
            return {}, f"{path} has {repr(text) if text else 'none'}"
    if len(set(folds.values())) < 2:
        return {}, "all sounds are in one"
    folds_of = defaultdict(set)
    for path, fold in folds.items():
        folds_of[sources[path]].add(fold)
    crossing = [source for source, found in folds_of.items() if len(found) > 1]
    return folds, f"{crossing[0]!r} would be in several" if crossing else ""


def _deal(tags: Tags, sources: Mapping[str, str]) -> dict[str, int]:
    """Folds 1 to `FOLDS`, or fewer: the recordings of the rarest tag first, each to the fold that has fewest of it.

    Iterative stratification (Sechidis et al. 2011), in whole recordings; of equal folds the highest is taken, since
    fold 1 tests: a tag with one recording is learned rather than tested. Raises ValueError for too few recordings.
    """
    paths_of = defaultdict(list)
    for path in sorted(tags.tags):
        paths_of[sources[path]].append(path)
    if len(paths_of) < LEAST_SOURCES:
        raise ValueError(
            f"{len(paths_of)} recordings: at least {LEAST_SOURCES} are needed, to train, to validate and to test; add "
            "sounds, or take each for a recording of its own with --source-from none"
        )
    counts = tags.counts
    order = keyed_generator("init folds").permutation(len(paths_of))
    shuffled = [sorted(paths_of)[index] for index in order]
    rarest = {
        source: _rarest({tag for path in paths for tag in tags.tags[path]}, counts)
        for source, paths in paths_of.items()
    }
    shuffled.sort(key=lambda source: (counts[rarest[source]] or len(tags.tags), rarest[source]))
    number = min(FOLDS, len(paths_of))
    have: dict[int, Counter[str]] = {fold: Counter() for fold in range(1, number + 1)}
    folds = {}
    for source in shuffled:
        fold = min(have, key=lambda fold: (have[fold][rarest[source]], have[fold].total(), -fold))
        have[fold].update(tag for path in paths_of[source] for tag in tags.tags[path] or ("",))
        folds.update(dict.fromkeys(paths_of[source], fold))
    return folds


def _rarest(tags: set[str], counts: Mapping[str, int]) -> str:
    """The tag with the fewest clips; empty where there is none."""
    return min(tags, key=lambda tag: (counts[tag], tag), default="")


def _about_times(parts: Sequence[Part]) -> list[str]:
    """That columns with times are not in the manifest, and what reads them."""
    times = [part for part in parts if part.column in TIME_COLUMNS]
    if len(times) < 2:
        return []
    return [
        f"not used: {' and '.join(part.where for part in times[:2])}; data.events = a table with the columns "
        "filename,onset,offset,event_label says when tags sound"
    ]


def _left_out(sounds: Sounds, tags: Tags) -> list[str]:
    notes = []
    if sounds.unusable:
        shown = name_some([f"{path} ({reason})" for path, reason in sounds.unusable.items()], SHOWN)
        notes.append(f"left out, {len(sounds.unusable)} files that cannot be heard: {shown}")
    if untagged := [path for path in sounds.paths if path not in tags.tags]:
        notes.append(f"left out, {len(untagged)} sounds without a tag: {name_some(untagged, SHOWN)}")
    return notes


def _about_tags(clips: Clips) -> list[str]:
    """Tags that cannot be tested, or are spelt in several ways."""
    trained = Counter(tag for row in clips.rows if row.fold != clips.test_fold for tag in row.tags)
    tested = Counter(tag for row in clips.rows if row.fold == clips.test_fold for tag in row.tags)
    notes = []
    if rare := [f"{tag} ({clips.counts[tag]})" for tag in sorted(clips.counts) if not tested[tag]]:
        notes.append(f"tags with too few recordings to be tested: {name_some(rare, SHOWN)}; add some")
    if unlearned := [tag for tag in sorted(clips.counts) if not trained[tag]]:
        notes.append(f"tags that only the test fold has: {name_some(unlearned, SHOWN)}; no model learns them")
    spelt = defaultdict(list)
    for tag in sorted(clips.counts):
        spelt["".join(tag.split()).casefold()].append(tag)
    if alike := [tags for tags in spelt.values() if len(tags) > 1]:
        notes.append(f"tags that differ only in blanks or capitals count as different: {', '.join(alike[0])}")
    return notes
