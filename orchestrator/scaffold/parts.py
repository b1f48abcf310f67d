"""What the path of each sound says: the folders it lies in, and the parts of its name. Opens no file."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

COVERED = 0.8  # share of the sounds of which a part must say something
PARTS_END = re.compile(r"[\W_]+")
COUNTER = re.compile(r"[\W_]*\d+\W*$")
TEST_WORDS = ("test", "testing", "eval", "evaluation")
SPLIT_WORDS = (*TEST_WORDS, "train", "training", "dev", "development", "val", "valid", "validation")
FOLD_NAME = re.compile(r"fold[\W_]*([0-9]{1,9})", re.IGNORECASE)
FOLD_COLUMNS = ("fold", "split", "subset")
TAG_COLUMNS = (
    *("tag", "tags", "label", "labels", "class", "classes", "classname", "category", "categories", "species", "target"),
    *("word", "keyword", "instrument", "instruments", "emotion", "genre", "digit", "eventlabel", "soundclass"),
)
TIME_COLUMNS = ("onset", "offset", "start", "end", "starttime", "endtime", "begintime", "starts", "ends")
SOURCE_COLUMNS = (
    *("source", "srcfile", "speaker", "speakerid", "recording", "recordingid", "recordist", "session", "sessionid"),
    *(
        "subject",
        "patient",
        "participant",
        "fsid",
        "track",
        "trackid",
        "video",
        "videoid",
        "clientid",
        "user",
        "userid",
    ),
)


# File names of data sets whose tables may be missing: what each group of a name means, as a column's name would say it
PUBLISHED_NAMES = {
    "ESC-50": re.compile(r"(?P<fold>[1-5])-(?P<source>\d+)-(?P<take>[A-Z])-(?P<target>\d{1,2})"),
    "UrbanSound8K": re.compile(r"(?P<source>\d+)-(?P<target>\d)-(?P<take>\d+)-(?P<slice>\d+)"),
}


@dataclass(frozen=True)
class Part:
    """One thing that is said of the sounds: a table's column, a level of folders, a part of the file names."""

    key: str  # how --tags-from and --source-from name it
    where: str  # for people
    values: dict[str, str]  # path of a sound -> what is said of it; without those of which nothing is said
    joined: bool = False  # several values of a sound are joined by semicolons
    meaning: str = ""  # the name that a column with these values would have, where that is known

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.values.values())

    @property
    def groups(self) -> bool:
        """Whether it has two values or more, and on average two sounds or more for each."""
        return 2 <= len(self.counts) <= len(self.values) / 2

    @property
    def is_split(self) -> bool:
        """Whether it says which sounds train and which test."""
        words = {text.casefold() for text in self.counts if text}
        return len(words) > 1 and words <= {*SPLIT_WORDS} and bool(words & {*TEST_WORDS})

    @property
    def says_folds(self) -> bool:
        """Whether it says how the sounds are split: a column by its name, others by their words or as fold1, fold2."""
        numbered = bool(self.counts) and all(map(FOLD_NAME.fullmatch, self.counts))
        return self.column in FOLD_COLUMNS or self.is_split or numbered

    @property
    def column(self) -> str:
        """A column's name as it is looked up: without blanks, dashes and capitals; empty for what is like no column."""
        if self.meaning:
            return self.meaning
        kind, _, name = self.key.partition(":")
        return re.sub(r"[\W_]+", "", name).casefold() if kind == "column" else ""

    def example(self) -> str:
        """Its most frequent values, for people."""
        shown = ", ".join(text or "none" for text, _ in self.counts.most_common(3))
        return f"{self.where}: {shown}{' ...' if len(self.counts) > 3 else ''} ({len(self.counts)} values)"


def folder_parts(paths: Sequence[str]) -> list[Part]:
    """A part for each level of folders that covers most sounds; the first level is 1."""
    folders = {path: PurePosixPath(path).parent.parts for path in paths}
    deepest = max(map(len, folders.values()), default=0)
    found = []
    for level in range(deepest):
        values = {path: _composed(names[level]) for path, names in folders.items() if len(names) > level}
        if len(values) >= COVERED * len(paths):
            found.append(Part(f"folder:{level + 1}", f"the folders of level {level + 1}", values))
    return found


def name_parts(paths: Sequence[str]) -> list[Part]:
    """The parts of the file names, between dots, blanks, dashes and underscores, where all names have as many of them.

    Else, and where they have only one, the names without the numbers at their ends: dog12 and dog_3 say dog. Of names
    as a published data set has them it is known which part is what.
    """
    if known := _published_parts(paths):
        return known
    stems = {path: _composed(PurePosixPath(path).stem) for path in paths}
    words = {path: [word for word in PARTS_END.split(stem) if word] for path, stem in stems.items()}
    lengths = {len(found) for found in words.values()}
    parts = []
    if len(lengths) == 1 and min(lengths) > 1:
        for place in range(min(lengths)):
            values = {path: found[place] for path, found in words.items()}
            parts.append(Part(f"name:{place + 1}", f"part {place + 1} of the file names", values))
        return _without_counter(parts)
    values = {path: text for path, stem in stems.items() if (text := COUNTER.sub("", stem))}
    if len(values) >= COVERED * len(paths):
        parts.append(Part("name", "the file names without their numbers", values))
    return parts


def _published_parts(paths: Sequence[str]) -> list[Part]:
    """The parts of names that are all of one published data set; none of other names."""
    for data_set, pattern in PUBLISHED_NAMES.items():
        found = {path: pattern.fullmatch(PurePosixPath(path).stem) for path in paths}
        named = {path: match for path, match in found.items() if match}
        if named and len(named) == len(paths):
            return [
                Part(
                    f"name:{place}",
                    f"part {place} of the file names, {data_set}'s {meaning}",
                    {path: match[place] for path, match in named.items()},
                    meaning=meaning,
                )
                for meaning, place in pattern.groupindex.items()
            ]
    return []


def _composed(name: str) -> str:
    """Macs part letters from their accents: the same name written in two ways is one tag."""
    return unicodedata.normalize("NFC", name)


def _without_counter(parts: list[Part]) -> list[Part]:
    """The parts without the last one, if that is a number: it counts the sounds of a group."""
    return parts[:-1] if all(text.isdigit() for text in parts[-1].counts) else parts
