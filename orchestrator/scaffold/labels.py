"""Which part of what is said of the sounds are their tags, and which their recordings. Opens no file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.scaffold.parts import FOLD_COLUMNS, SOURCE_COLUMNS, TAG_COLUMNS, Part
from orchestrator.scaffold.questions import Ask, Question, choose

SEPARATORS = {"semicolon": ";", "bar": "|", "comma": ",", "none": ""}  # value of --separator -> what it is
LEAST_SOURCES = 3  # one each to train, to validate and to test


@dataclass(frozen=True)
class Tags:
    """The tags of each sound, and where they are from."""

    part: Part
    tags: dict[str, tuple[str, ...]]  # path -> its sorted tags; those of which nothing is said are not in it

    @property
    def labels(self) -> str:
        """single where every sound has exactly one tag."""
        return "single" if all(len(tags) == 1 for tags in self.tags.values()) else "multi"

    @property
    def counts(self) -> Counter[str]:
        return Counter(tag for tags in self.tags.values() for tag in tags)


def find_tags(parts: Sequence[Part], ask: Ask, *, tags_from: str, separator: str) -> Tags:
    """The tags by the part that says them: at most two questions.

    Raises ValueError where nothing groups the sounds, where all of them have one tag and none is without, and for tags
    that hold a semicolon, which parts tags in a manifest.
    """
    candidates = _candidates(parts)
    named = [part for part in parts if part.key == tags_from and part not in candidates]
    candidates += named  # the user may know better
    if not candidates:
        raise ValueError(_nothing_groups(parts))
    best = _rank(candidates[0])
    question = Question(
        "Where are the tags?",
        "--tags-from",
        [(part.key, part.example()) for part in candidates],
        clear=len([part for part in candidates if _rank(part) == best]) == 1 and best < 3,
    )
    part = candidates[choose(question, ask, tags_from)]
    mark = _separator(part, ask, separator)
    tags = {path: _split(text, mark) for path, text in part.values.items()}
    if not any(len(found) > 1 for found in tags.values()):
        tags = {path: found for path, found in tags.items() if found}  # one tag a sound: an empty cell is unknown
    _check(part, tags)
    return Tags(part, tags)


def _candidates(parts: Sequence[Part]) -> list[Part]:
    """What may be the tags, the likeliest first; of parts that group the sounds alike, the one in words."""
    found = sorted((part for part in parts if _may_be_tags(part)), key=_rank)
    kept: list[Part] = []
    for part in found:
        twin = next((other for other in kept if _same_groups(part, other)), None)
        if twin is None:
            kept.append(part)
        elif _rank(twin) == _rank(part) and _in_numbers(twin) and not _in_numbers(part):
            kept[kept.index(twin)] = part  # the number of a class, and its name
    return kept


def _may_be_tags(part: Part) -> bool:
    if part.says_folds or part.column in SOURCE_COLUMNS:
        return False
    return (part.groups or _rank(part) == 0) and len(part.counts) > 1


def _rank(part: Part) -> int:
    """How likely a part says tags: 0 by its name, 1 as folders do, 2 as other columns, 3 as parts of names do."""
    if part.key == "columns" or part.column in TAG_COLUMNS:
        return 0
    return {"folder": 1, "column": 2}.get(part.key.partition(":")[0], 3)


def _in_numbers(part: Part) -> bool:
    return all(text.replace(".", "").isdigit() for text in part.counts if text)


def _same_groups(one: Part, other: Part) -> bool:
    pairs = {(text, other.values.get(path)) for path, text in one.values.items()}
    return len(pairs) == len(one.counts) == len(other.counts)


def _nothing_groups(parts: Sequence[Part]) -> str:
    folders = [part for part in parts if part.key.startswith("folder:") and len(part.counts) == 1]
    if folders:
        tag, count = folders[-1].counts.most_common(1)[0]
        return (
            f"all {count} sounds lie in one folder, {tag!r}, and nothing else groups them: one class cannot be "
            "learned; add a folder with sounds of another kind, or a table with the columns path,tags"
        )
    return (
        "nothing says what the sounds are: no table names them, no folder groups them and their names have no part in "
        "common; write a CSV file with the columns path,tags, or put each kind into a folder of its own"
    )


def _separator(part: Part, ask: Ask, given: str) -> str:
    """What parts several tags in a cell; asked where commas may do so or belong to the tags' names."""
    if part.joined:
        return ";"
    texts = set(part.counts)
    marks = () if part.key.startswith("folder:") else (";", "|")  # the name of a folder is one tag
    found = next((mark for mark in marks if any(mark in text for text in texts)), "")
    atoms = Counter(atom.strip() for text in texts for atom in text.split(","))
    commas = [text for text in sorted(texts) if "," in text]
    if found or not commas:
        answers = [(name, "") for name, mark in SEPARATORS.items() if mark == found]
        answers += [(name, "") for name, mark in SEPARATORS.items() if mark != found]
        return SEPARATORS[answers[choose(Question("", "--separator", answers, clear=True), ask, given)][0]]
    alone = any(atom.strip() in texts for text in commas for atom in text.split(","))
    shared = any(count > 1 for count in atoms.values())
    atoms_of_first = " and ".join(atom.strip() for atom in commas[0].split(","))
    several, one = ("comma", f"several: {atoms_of_first}"), ("none", f"one: {commas[0]}")
    answers = [several, one] if shared else [one, several]
    others = [(name, "") for name in SEPARATORS if name not in ("comma", "none")] if given else []
    question = Question(
        f"Does {commas[0]!r} name several tags, or one with a comma in its name?",
        "--separator",
        [*answers, *others],
        clear=alone or not shared,
    )
    return SEPARATORS[question.answers[choose(question, ask, given)][0]]


def _split(text: str, mark: str) -> tuple[str, ...]:
    found = {tag.strip() for tag in (text.split(mark) if mark else [text])}
    return tuple(sorted(found - {""}))


def _check(part: Part, tags: dict[str, tuple[str, ...]]) -> None:
    counts = Counter(tag for own in tags.values() for tag in own)
    if semicolons := [tag for tag in counts if ";" in tag]:
        raise ValueError(
            f"{part.where}: the tag {semicolons[0]!r} holds a semicolon, which parts tags in a manifest; rename it, or "
            "--separator semicolon"
        )
    without = sum(not own for own in tags.values())
    if not counts or (len(counts) == 1 and not without):
        raise ValueError(
            f"{part.where}: all {len(tags)} sounds have {', '.join(map(repr, counts)) or 'no tag'}: one class cannot "
            "be learned; add sounds without it, or choose other tags with --tags-from"
        )


def find_sources(parts: Sequence[Part], tags: Tags, ask: Ask, *, source_from: str) -> Part | None:
    """The part that says from which recording or speaker each sound is, if there is one: at most one question."""
    others = [part for part in parts if part.key != tags.part.key and not part.says_folds]
    likely = [part for part in others if _may_be_sources(part, tags)]
    known = [part for part in likely if part.column in SOURCE_COLUMNS]
    likely.sort(key=lambda part: (part not in known, _in_numbers(part), not _across_tags(part, tags)))
    likely = likely[:4] + [part for part in others if part.key == source_from and part not in likely[:4]]
    answers = [(part.key, part.example()) for part in likely]
    none = ("none", "each sound is a recording of its own")
    first = likely and (likely[0] in known or (_across_tags(likely[0], tags) and not _in_numbers(likely[0])))
    answers = [*answers, none] if first else [none, *answers]
    question = Question(
        "Which sounds are of one recording or speaker? They stay together, in training or in test.",
        "--source-from",
        answers,
        clear=bool(known) or not likely,
    )
    key = answers[choose(question, ask, source_from)][0]
    return next((part for part in likely if part.key == key), None)


def _may_be_sources(part: Part, tags: Tags) -> bool:
    """Whether a part has several sounds for each value, enough of these, and does not say what the tags say."""
    if part.joined or _same_groups(part, tags.part) or part.column in (*FOLD_COLUMNS, *TAG_COLUMNS):
        return False
    counts = part.counts
    return len(part.values) >= len(tags.tags) and LEAST_SOURCES <= len(counts) < len(part.values)


def _across_tags(part: Part, tags: Tags) -> bool:
    """Whether most values are of sounds with different tags, as speakers say all words."""
    said: dict[str, set[tuple[str, ...]]] = {}
    for path, text in part.values.items():
        said.setdefault(text, set()).add(tags.tags.get(path, ()))
    return sum(len(found) > 1 for found in said.values()) > len(said) / 2
