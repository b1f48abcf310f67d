"""What is doubtful about a data set though a run on it works: one line each, with the value, its meaning and the fix.

The one place where they are computed: `antiphon data check` and the drivers print them, the `data` record keeps them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from workloads.config.controls import controls_of
from workloads.config.data import SEVERAL_TAGS
from workloads.config.recipe import Recipe
from workloads.data.clips import Dataset
from workloads.data.decoded import DecodedClip
from workloads.data.formats.rows import FOLDS
from workloads.data.splits import Splits
from workloads.data.statistics import PARTS, durations, rates, tag_counts
from workloads.runtime.text import name_some

MUCH_LONGER = 2  # clip_seconds over the median duration, from which most of a window is padding
LOW_RATE = 0.75  # a file's rate, as a share of the front end's, that leaves much of its range empty
RARE_SHARE = 0.01  # of clips with a low rate, below which they are not worth a warning
COMMA_SHARE = 0.9  # of clips whose tags hold a comma
SAMPLE_S = 2e-4  # longer than a sample at the cache's rate
SHOWN = 5  # names in one warning


def data_warnings(dataset: Dataset, splits: Splits, decoded: Mapping[str, DecodedClip], recipe: Recipe) -> list[str]:
    """All warnings; `decoded` are the clips that are decoded already, by clip_id: without any, none are about the
    sound."""
    about_sound = [*_sound_warnings(decoded.values(), recipe), _late_events(dataset, decoded)] if decoded else []
    return [*_metadata_warnings(dataset, splits, recipe), *filter(None, about_sound)]


def _metadata_warnings(dataset: Dataset, splits: Splits, recipe: Recipe) -> list[str]:
    return [
        warning
        for warning in (
            _nothing_scored(dataset),
            _without_sources(dataset),
            _without_folds(dataset, splits, recipe),
            _sources_alike(dataset),
            _files_used_twice(dataset, splits),
            _comma_tags(dataset, recipe),
            *_tags_without_clips(dataset, splits),
            *dataset.warnings,
            _left_out(dataset, splits, recipe),
            _heard_without_learning(splits, recipe),
        )
        if warning
    ]


def _nothing_scored(dataset: Dataset) -> str:
    if dataset.has_labels:
        return ""
    return (
        "column labelled: no clip has a label, so nothing is scored, in validation or test: label some clips to learn "
        "how good a model is"
    )


def _without_sources(dataset: Dataset) -> str:
    if not dataset.without_source:
        return ""
    return (
        f"column source: {dataset.without_source} clips name none; clips of one recording or "
        "speaker may be in training and in test, and scores are then too good: name each clip's recording or speaker "
        "in a column source"
    )


def _without_folds(dataset: Dataset, splits: Splits, recipe: Recipe) -> str:
    if not dataset.folds_assigned:
        return ""
    return (
        f"column fold: there is none; each clip gets a fold from 1 to {FOLDS} by a hash of its source, so tags are not "
        f"spread evenly, and fold {recipe.data.test_fold} ({len(splits.test)} clips) is the test set: number the folds "
        "in a column fold to choose, or to compare with published scores"
    )


def _sources_alike(dataset: Dataset) -> str:
    first: dict[str, str] = {}  # the first spelling of each; a set for each of millions would take much memory
    alike_by_name: dict[str, set[str]] = defaultdict(set)
    for clip in dataset.clips:
        name = "".join(clip.source.split()).casefold()
        if first.setdefault(name, clip.source) != clip.source:
            alike_by_name[name] |= {first[name], clip.source}
    alike = [sorted(alike_by_name[name]) for name in first if name in alike_by_name]
    if not alike:
        return ""
    spelt = name_some([repr(name) for name in alike[0]], SHOWN)
    return (
        f"column source: {len(alike)} sources are spelt in several ways ({spelt}), which differ only in "
        "spaces or capitals and count as different recordings, so clips of one may be in training and in test: spell "
        "each source in one way"
    )


def _files_used_twice(dataset: Dataset, splits: Splits) -> str:
    counts = Counter(clip.path for clip in dataset.clips if clip.path)
    if len(counts) == counts.total():
        return ""
    repeated = defaultdict(list)
    for clip in dataset.clips:
        if counts[clip.path] > 1:
            repeated[clip.path].append(clip.clip_id)
    parts = {clip.clip_id: part for part in PARTS for clip in getattr(splits, part)}
    across = sum(len({parts[name] for name in ids if name in parts}) > 1 for ids in repeated.values())
    path, ids = next(iter(repeated.items()))
    return (
        f"column path: {len(repeated)} files belong to several clips ({path!r} to {name_some(ids, SHOWN)}), "
        + (f"{across} of them to clips of different parts, so scores are too good" if across else "of one part each")
        + ": give each file one row, with all of its tags"
    )


def _comma_tags(dataset: Dataset, recipe: Recipe) -> str:
    if dataset.plain_format(recipe.data) in SEVERAL_TAGS:  # its reader has parted them; AudioSet's names hold commas
        return ""
    tagged = [clip for clip in dataset.clips if clip.tags]
    joined = [clip for clip in tagged if any("," in tag for tag in clip.tags)]
    if not joined or len(joined) < COMMA_SHARE * len(tagged):
        return ""
    tag = next(tag for tag in joined[0].tags if "," in tag)
    return (
        f"column tags: {len(joined)} of {len(tagged)} clips have a tag that holds a comma, such as {tag!r}: one tag, "
        f"not several; if several are meant, separate them by semicolons ({tag.replace(',', ';')})"
        + ("" if dataset.labels == "multi" else " and set data.labels = 'multi'")
    )


def _tags_without_clips(dataset: Dataset, splits: Splits) -> list[str]:
    if not dataset.has_labels:
        return []
    counts, found = tag_counts(dataset, splits), []
    for part in PARTS:
        absent = [tag for tag, count in counts.items() if not count.parts[part]]
        if absent:
            meaning = "no model learns them" if part == "train" else f"the {part} score does not show them"
            found.append(
                f"column tags: {len(absent)} of {len(counts)} tags have no clip in the {part} part "
                f"({name_some(absent, SHOWN)}), so {meaning}: add clips with them, or remove them"
            )
    return found


def _left_out(dataset: Dataset, splits: Splits, recipe: Recipe) -> str:
    if not splits.left_out or recipe.data.unlabelled == "leave_out":
        return ""
    if not dataset.has_labels:
        return (
            f"column labelled: {len(splits.left_out)} clips are used nowhere, because they are of recordings in test "
            f"fold {recipe.data.test_fold}, so that they can test once they are labelled: give them another fold to "
            "train on them"
        )
    return (
        f"column labelled: {len(splits.left_out)} unlabelled clips are used nowhere, because they are in test fold "
        f"{recipe.data.test_fold} or of recordings that are validated on: label them, or give those of other "
        "recordings another fold or a source of their own"
    )


def _heard_without_learning(splits: Splits, recipe: Recipe) -> str:
    unlabelled = sum(not clip.labelled for clip in splits.train)
    if unlabelled and controls_of(recipe):
        return (
            f"compare: {unlabelled} of {len(splits.train)} training clips have no label, so the control, which hears "
            "the student's batches, learns from a part of each, and what teaching did looks better than it is: also "
            "run the recipe with --no-compare, once as it is and once with --set 'edges=[]' --set "
            "data.unlabelled=leave_out, then `antiphon compare RUN --control RUN`"
        )
    if not unlabelled or recipe.edges:
        return ""
    return (
        f"data.unlabelled = 'hear': {unlabelled} of {len(splits.train)} training clips have no label, and the recipe "
        "has no edges, so nothing is learned from them: --set data.unlabelled=leave_out"
    )


def _sound_warnings(decoded: Collection[DecodedClip], recipe: Recipe) -> list[str]:
    return [warning for warning in (_much_padding(decoded, recipe), *_low_rates(decoded, recipe)) if warning]


def _late_events(dataset: Dataset, decoded: Mapping[str, DecodedClip]) -> str:
    """Events that begin when their clip is over, as those do whose times are no seconds."""
    late = [
        (clip.clip_id, event.onset)
        for clip in dataset.clips
        if clip.events and clip.clip_id in decoded
        for event in clip.events
        if event.onset >= decoded[clip.clip_id].seconds
    ]
    if not late:
        return ""
    clip_id, onset = late[0]
    return (
        f"data.events: {len(late)} of {sum(len(clip.events or ()) for clip in dataset.clips)} events begin when their "
        f"clip is over (of {clip_id}, which lasts {decoded[clip_id].seconds:.3g} s, one at {onset:g} s), so nothing "
        "sounds in their place: give onsets and offsets in seconds from the start of the clip"
    )


def _much_padding(decoded: Collection[DecodedClip], recipe: Recipe) -> str:
    window = recipe.data.clip_seconds
    found = durations(decoded, window)
    if window < MUCH_LONGER * found.median:
        return ""
    share, enough = _shorter_window([clip.seconds for clip in decoded], window)
    return (
        f"data.clip_seconds = {window:g}: {window / found.median:.3g} times the median clip ({found.median:.3g} s), so "
        f"{found.padding:.0%} of what models hear is padding: --set data.clip_seconds={enough:g} holds {share} "
        "clips whole"
    )


def _shorter_window(seconds: list[float], window: float) -> tuple[str, float]:
    """A shorter window, and how many of the clips it holds whole: all, else most of them, at least half."""
    ordered = sorted(seconds)
    for share in (1.0, 0.95, 0.75):
        enough = _rounded_up(ordered[math.ceil(share * len(ordered)) - 1])
        if enough < 0.75 * window:
            return "all" if share == 1 else f"{share:.0%} of the", enough
    return "half of the", _rounded_up(ordered[math.ceil(len(ordered) / 2) - 1])


def _rounded_up(seconds: float) -> float:
    """To hundredths below 1 s, else to tenths; the sample that resampling may add is not rounded up."""
    grid = 100 if seconds < 1 else 10
    return max(1, math.ceil((seconds - SAMPLE_S) * grid)) / grid


def _low_rates(decoded: Collection[DecodedClip], recipe: Recipe) -> list[str]:
    """One warning for each front-end rate of the recipe above which many clips have nothing."""
    found = []
    kinds = {model.front_end.kind: model.front_end.rate for model in recipe.models.values()}
    for rate in sorted(set(kinds.values())):
        low = {own: count for own, count in rates(decoded).items() if own <= LOW_RATE * rate}
        if not low or sum(low.values()) < RARE_SHARE * len(decoded):
            continue
        own = max(low, key=low.__getitem__)
        names = ", ".join(kind for kind in kinds if kinds[kind] == rate)
        found.append(
            f"sample rates: {sum(low.values()) / len(decoded):.0%} of the clips are at {', '.join(map(str, low))} Hz, "
            f"below the {rate} Hz of {names}: above {own // 2} Hz they hold nothing, so about "
            f"{_empty_bands(own, rate):.0%} of the mel bands are empty; use recordings at a higher rate if they exist, "
            "else tag only sound of this rate later"
        )
    return found


def _empty_bands(own: int, rate: int) -> float:
    """Share of the mel scale up to half of `rate` that is above half of `own` (O'Shaughnessy: 1127 ln(1 + f / 700))."""
    return 1 - math.log1p(own / 2 / 700) / math.log1p(rate / 2 / 700)
