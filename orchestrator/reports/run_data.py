"""What a run's `data` record says, ready to be printed: lengths, folds, clips of each tag, scores without a model.

Records of a run that ended early, or of another writer, may lack any of it: then it is left out.
"""

from orchestrator.reports.formatting import format_count, format_duration, plural
from orchestrator.reports.run_history import RunHistory
from orchestrator.reports.run_shapes import StoreFields
from workloads.evaluate.chance import chance_levels, chance_precision
from workloads.stores.store import name_teachers

PARTS = {"train": "training", "val": "validation", "test": "test"}
MAX_FOLDS = 20  # of more, only their number is printed
EVEN = 0.98  # flatness of profiles above which they say hardly when (reference/tkd.md 9.2, point 4)

MEANINGS = {
    "accuracy": "share of clips whose most likely tag is the true one, 0 to 1, more is better; without a model: always "
    "the commonest tag",
    "mAP": "mean average precision: for each tag, how far up its clips are when all are sorted by the tag's "
    "probability, then the mean over the tags that can be scored, 0 to 1, more is better; without a model: clips in "
    "random order",
    "frame_mAP": "the same of frames of 40 ms instead of clips, where it is known when tags sound: does the model say "
    "when, 0 to 1, more is better",
    "attention_mass": "share of the energy of a network's sequence that lies inside the keyword, 0 to 1, more is "
    "better: does the model listen when the keyword is said; of a flat profile the share of the clip that it lasts",
    "own_attention_mass": "the same share of a network's own attention over time, which Att-RNN and MHAtt-RNN have and "
    "a teacher of profiles teaches them",
    "auc": "share of the pairs of a clip with the tag and one without it of which the first gets the higher "
    "probability, the mean over tags, 0 to 1, more is better; without a model: 0.5",
    "d_prime": "the auc on a scale without an upper end (in standard deviations), more is better; without a model: 0",
    "log_loss": "minus the logarithm of the probability given to what is true, in nats, less is better; without a "
    "model: each tag's share of the clips as its probability",
    "ece": "expected calibration error: how far probabilities are from the share of cases that come true, 0 to 1, less "
    "is better",
}


def chance(history: RunHistory, part: str) -> dict[str, float]:
    """The scores of a part (val, test) without a model; empty where the record has no counts."""
    have, known = _counts(history, part)
    return chance_levels(have, known, history.data["labels"]) if have else {}


def chance_by_tag(history: RunHistory, part: str) -> dict[str, float]:
    """With several tags a clip, the average precision of clips in random order, by tag; of tags that can be scored."""
    have, known = _counts(history, part)
    if not have or history.data["labels"] != "multi":
        return {}
    rows = zip(history.data["tags"], have, known, strict=True)
    return {tag: chance_precision(own, total) for tag, own, total in rows if 0 < own < total}


def _counts(history: RunHistory, part: str) -> tuple[list[int], list[int]]:
    """For each tag the clips of a part that have it, and those of which it is known; empty without a record of them."""
    data = history.data
    have = data.get("clips_per_tag", {}).get(part, [])
    known = (data.get("known_per_tag") or {}).get(part) or [data["clips"][part]] * len(have) if have else []
    return have, known


def clip_counts(history: RunHistory) -> list[tuple[str, str]]:
    """(name, number) of the clips of each part, with how many are labelled where not all are."""
    data = history.data
    rows = {f"{part} clips": format_count(count) for part, count in data["clips"].items()}
    if unlabelled := data.get("unlabelled"):
        rows["train clips"] += f", {format_count(data['clips']['train'] - unlabelled)} of them labelled"
    if left_out := data.get("left_out"):
        rows["unlabelled clips left out"] = format_count(left_out)
    for store in data.get("stores", []):
        if without := store["without_rows"]:
            rows[f"train clips without a row of {store['edge']}"] = f"{format_count(without)}, taught by their labels"
    return list(rows.items())


def stores(history: RunHistory) -> list[tuple[str, str]]:
    """(edge, what the store that teaches along it holds, where it is, and whether waveforms were compared)."""
    return [(store["edge"], _store(store)) for store in history.data.get("stores", [])]


def _store(store: StoreFields) -> str:
    holds = (
        f"column {store['column']} of {store['store']}: {plural(store['views'], 'view')} of "
        f"{plural(store['clips'], 'clip')}"
    )
    if teachers := store.get("teachers"):
        holds += f", outputs of {name_teachers(teachers)}"
    if compared := store.get("waveforms_compared"):
        clips = plural(compared, "sampled clip")
        return f"{holds}; the student gets the waveforms that its teachers got, compared bit for bit for {clips}"
    if reason := store.get("not_compared"):
        return f"{holds}; the student's waveforms were not compared with its teachers': {reason}"
    return holds


def facts(history: RunHistory) -> list[tuple[str, str]]:
    """(name, value with its unit) of the lengths of clips."""
    data, rows = history.data, []
    if "clip_seconds" in data:
        rows.append(("clip length", f"{data['clip_seconds']:g} s"))
    if files := data.get("durations"):
        shortest, median, longest = (f"{round(files[key], 3):g} s" for key in ("min", "median", "max"))
        padded, cut = plural(files["shorter"], "shorter one"), plural(files["longer"], "longer one")
        unequal = f"{shortest} to {longest}, median {median}; {padded} padded, {cut} cut in training"
        rows.append(("length of the files", f"all {shortest}" if shortest == longest else unequal))
        rows.append(("audio", f"{format_duration(files['total'])} in all"))
    if "rate" in data:
        rows.append(("sample rate", f"{format_count(data['rate'])} Hz"))
    return rows


def fold_rows(history: RunHistory) -> list[dict[str, str]]:
    """A row for each fold: how many of its clips train, validate and test; none where there are too many folds."""
    folds: dict[str, dict[str, int]] = history.data.get("folds", {})
    if len(folds) > MAX_FOLDS:
        return []
    return [
        {"fold": fold, **{part: format_count(count) for part, count in counts.items()}, "use": _use(counts)}
        for fold, counts in folds.items()
    ]


def _use(counts: dict[str, int]) -> str:
    return ", ".join(name for part, name in PARTS.items() if counts[part]) or "none"


def has_tags(history: RunHistory) -> bool:
    """Whether any clip has a tag, as far as the record says."""
    return any(any(counts) for counts in history.data.get("clips_per_tag", {}).values())


def balance(history: RunHistory) -> str:
    """The tags with the most and the fewest training clips, in a sentence; empty without counts."""
    data = history.data
    if not data.get("clips_per_tag"):
        return ""
    counts = dict(zip(data["tags"], data["clips_per_tag"]["train"], strict=True))
    most, fewest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] == counts[fewest]:
        return f"Every tag is on {plural(counts[most], 'training clip')}."
    return (
        f"The commonest tag, {most}, is on {plural(counts[most], 'training clip')}, the rarest, {fewest}, on "
        f"{format_count(counts[fewest])}."
    )


def even_profiles(history: RunHistory) -> list[str]:
    """A sentence for each edge whose profiles are even: they do not say when. Of the last steps that were logged."""
    recent = {edge: history.curves[f"{edge}/flatness"][-10:] for edge in history.edges_with("flatness")}
    means = {edge: sum(value for _, value in points) / len(points) for edge, points in recent.items()}
    return [
        f"{edge}: the profiles have a mean flatness of {mean:.3f} over the last {plural(len(recent[edge]), 'record')}: "
        "they hardly say when. gate = 'entropy' takes most of their weight; a teacher with fewer blocks may say more."
        for edge, mean in means.items()
        if mean > EVEN
    ]


def described_metrics(history: RunHistory) -> list[tuple[str, str]]:
    """(metric, meaning) of the scores that the page prints."""
    scores = [row[part] for row in history.results.values() for part in ("val", "test") if row.get(part)]
    names = {name for of_part in scores for name in of_part} | (
        {history.primary_metric} if history.is_scored else set()
    )
    return [(name, meaning) for name, meaning in MEANINGS.items() if name in names]


def unscored(history: RunHistory) -> str:
    """How many tags the test scores leave out, in a sentence; empty if none."""
    skipped = max((int(row["test"].get("tags_skipped", 0)) for row in history.results.values()), default=0)
    if not skipped:
        return ""
    total = len(history.data.get("tags", []))
    return f"Test mAP is the mean of {total - skipped} of {total} tags: the others are on no test clip, or on all."
