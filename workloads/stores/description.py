"""What a store says of itself: the shapes of its two JSON files, and the check that a store is the expected one.

description.json comes first and says what the rows are; manifest.json comes last and says which files hold them. Does
not depend on where a store lies.
"""

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Interval
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.config.data import MAX_CLIP_SECONDS, MAX_RATE
from workloads.runtime.json_files import parse_json

DESCRIPTION, MANIFEST, CLIPS, SHARDS = "description.json", "manifest.json", "clips.parquet", "shards"
OF_CLIPS = ("clips", "format", "heard")  # keys of a description that may differ between stores of different clips
FORMAT = 1  # of the whole store: raise it when a reader of the old format would misread the new one
MAX_TAGS = 2**16
DRAWN_ELSEWHERE = 0  # version of views that another program drew: no code here can draw them again
COLUMN_NAME = re.compile(r"[a-z][a-z0-9_.]*")
SHA256 = re.compile(r"[0-9a-f]{64}")

Count = Annotated[int, Interval(ge=1, le=2**40)]
ClipCount = Annotated[int, Interval(ge=1, lt=2**31)]
Width = Annotated[int, Interval(ge=1, le=2**20)]


class ImportedFrom(TypedDict):
    """Which files another project has published of what its teacher said, and how they were read."""

    format: str
    files: dict[str, str]  # SHA-256 by name


class StoredTeacher(TypedDict):
    """A model whose outputs are stored. What else is known of it may stand beside these keys, and is compared too."""

    name: str
    weights_sha256: str  # with `imported_from`: of the list of its files, since the weights are not known
    front_end: str  # its kind
    imported_from: NotRequired[ImportedFrom]


class ViewRecipe(TypedDict):
    """What the teachers heard: view v of a clip is drawn from these values, the clip's name and v.

    Of version DRAWN_ELSEWHERE `augment` only says what is known: nothing for clean clips, else who drew the views.
    """

    version: Annotated[int, Interval(ge=DRAWN_ELSEWHERE)]  # of the code that draws and applies views
    augment: dict[str, Any]  # the recipe's [augment], with its view_seed
    clip_seconds: Annotated[float, Interval(gt=0, le=MAX_CLIP_SECONDS)]
    rate: Annotated[int, Interval(gt=0, le=MAX_RATE)]  # Hz
    count: Count  # views of each clip, from 0 on


class Frames(TypedDict):
    """When the frames of an output are, in seconds from the start of the view."""

    count: Width
    hop_seconds: Annotated[float, Interval(gt=0, le=MAX_CLIP_SECONDS)]
    first_seconds: float  # the middle of frame 0


class Column(TypedDict):
    """One output of every row; with `frames` one for each frame of the clip, else one for the clip.

    A profile is one number for each frame: a distribution over them.
    """

    holds: Literal["logits", "probabilities", "embedding", "profile"]
    teachers: list[str]  # whose output it is; of several, their mean
    mean_of: NotRequired[Literal["logits", "probabilities"]]  # what the mean of several teachers was taken of
    layout: Literal["dense", "topk"]
    k: NotRequired[Width]  # topk: tags kept of each row, those of the largest values; of frames, of the largest maximum
    width: Width  # of the whole row: tags, dimensions of an embedding, 1 of a temporal profile
    frames: NotRequired[Frames]
    dtype: Literal["float16", "uint8"]  # uint8: of frames, in equal steps (`columns.py::BOUNDS`), which is not exact


class ClipList(TypedDict):
    """Which clips have rows, and how they are cut into shards (`stores/plan.py`)."""

    count: ClipCount
    per_shard: ClipCount
    sha256: str  # of their names (`stores/plan.py::clips_sha256`)


class ViewChecksum(TypedDict):
    """SHA-256 of the waveform that the teachers got of a clip in one view (`workloads/data/view_checksum.py`)."""

    view: Annotated[int, Interval(ge=0, le=2**40)]
    sha256: str


class About(TypedDict):
    """What its maker says of a store; the names in `teachers` of columns are those of `teachers` here."""

    teachers: list[StoredTeacher]
    tags: list[str]  # in the order of the outputs; none where no column has a value for each tag
    labels: NotRequired[Literal["single", "multi"]]  # with tags: whether probabilities are softmax or sigmoid of logits
    views: ViewRecipe
    columns: dict[str, Column]
    # of some clips, by name (`stores/checksum_sample.py`); none: another program made the rows
    heard: NotRequired[dict[str, ViewChecksum]]


class Description(About):
    """description.json: what the rows of a store are; written before the first row."""

    format: int
    clips: ClipList


class ShardFile(TypedDict):
    """A file of one column of one shard; its name is `shard_name` of these."""

    bytes: Count
    sha256: str


class ShardEntry(TypedDict):
    """A shard of a finished store: its number of clips, the first and last of them by name, a file for each column."""

    clips: Count
    first: str
    last: str
    files: dict[str, ShardFile]
    checksums: NotRequired[dict[str, ViewChecksum]]  # of some of its clips, by name; more than `heard` has


class Manifest(TypedDict):
    """manifest.json: the files of a finished store; written last."""

    rows: Count
    description_sha256: str
    shards: list[ShardEntry]


def shard_name(column: str, number: int, sha256: str) -> str:
    """The name of a shard's file: its content decides it, so two writers never put different bytes under one name."""
    return f"{column}-{number:06d}-{sha256}.npy"


def parse_shard_name(name: str) -> tuple[str, int, str] | None:
    """Column, number and SHA-256 of a shard's file; None for another file."""
    found = re.fullmatch(r"([a-z][a-z0-9_.]*)-(\d{6,})-([0-9a-f]{64})\.npy", name)
    return (found[1], int(found[2]), found[3]) if found else None


def checksum_name(number: int, place: int, checksum: ViewChecksum) -> str:
    """The name of a file, beside the shards of an unfinished store, that says the checksum of the clip at this place of
    a shard; its content does not matter."""
    return f"{number:06d}-{place:06d}-{checksum['view']}-{checksum['sha256']}.checksum"


def parse_checksum_name(name: str) -> tuple[int, int, ViewChecksum] | None:
    """Number of the shard, place of the clip in it and its checksum; None for another file."""
    found = re.fullmatch(r"(\d{6,})-(\d{6,})-(\d+)-([0-9a-f]{64})\.checksum", name)
    return (int(found[1]), int(found[2]), ViewChecksum(view=int(found[3]), sha256=found[4])) if found else None


def parse_description(content: str | bytes, name: str) -> Description:
    """The description in a file called `name`; ValueError where it has another shape or contradicts itself."""
    _require_format(parse_json(content, name, dict[str, Any]), name)  # another version's may have another shape
    description: Description = parse_json(content, name, Description)
    require_consistent(description, name)
    return description


def require_consistent(description: Description, name: str) -> None:
    """ValueError, naming the place, where a description contradicts itself."""
    _require_format(description, name)
    teachers = [teacher["name"] for teacher in description["teachers"]]
    of_tags = any(map(is_for_tags, description["columns"].values()))
    for key, names, least in (("teachers", teachers, 1), ("tags", description["tags"], int(of_tags))):
        if len(set(names)) < len(names) or len(names) < least:
            raise ValueError(f"{name}: {key}: needs at least one, each once")
    if bool(description["tags"]) != ("labels" in description):
        raise ValueError(f"{name}: labels: belongs to a store with tags, and to no other")
    if len(description["tags"]) > MAX_TAGS:
        raise ValueError(f"{name}: tags: {len(description['tags'])} of them; at most {MAX_TAGS} are possible")
    if not description["columns"]:
        raise ValueError(f"{name}: columns: needs at least one")
    for key, column in description["columns"].items():
        _require_consistent_column(column, f"{name}: columns.{key}", key, teachers, len(description["tags"]))


def _require_format(description: Mapping[str, Any], name: str) -> None:
    if description.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"{name}: format = {description['format']}: only format {FORMAT} can be read; use the version that wrote it"
        )


def _require_consistent_column(column: Column, place: str, key: str, teachers: list[str], num_tags: int) -> None:
    if not COLUMN_NAME.fullmatch(key):
        raise ValueError(f"{place}: a column's name is a small letter, then small letters, digits, _ or .")
    if not column["teachers"] or not set(column["teachers"]) <= set(teachers):
        raise ValueError(f"{place}.teachers: must be some of {', '.join(teachers)}")
    is_of_tags, several = is_for_tags(column), len(column["teachers"]) > 1
    if several != ("mean_of" in column) or (several and not is_of_tags):
        raise ValueError(f"{place}.mean_of: belongs to logits or probabilities of several teachers, and to no others")
    if (column["layout"] == "topk") != ("k" in column) or ("k" in column and not is_of_tags):
        raise ValueError(f"{place}.k: belongs to the layout topk of logits or probabilities, and to no other")
    if is_of_tags and column["width"] != num_tags:
        raise ValueError(f"{place}.width = {column['width']}: there are {num_tags} tags")
    if column.get("k", 1) > column["width"]:
        raise ValueError(f"{place}.k = {column['k']}: a row has {column['width']} values")
    if column["holds"] == "profile" and ("frames" not in column or column["width"] != 1):
        raise ValueError(f"{place}.frames: a profile has frames, which say when its steps are, and a width of 1")
    if column["dtype"] == "uint8" and not ("frames" in column and is_of_tags):
        raise ValueError(f"{place}.dtype = 'uint8': belongs to logits or probabilities of frames; use 'float16'")


def is_for_tags(column: Column) -> bool:
    """Whether a column holds a value for each tag."""
    return column["holds"] in ("logits", "probabilities")


def parse_manifest(content: str | bytes, name: str, description: Description, description_sha256: str) -> Manifest:
    """The manifest in a file called `name`; ValueError where it does not belong to this description."""
    manifest: Manifest = parse_json(content, name, Manifest)
    clips, columns = description["clips"], set(description["columns"])
    if manifest["description_sha256"] != description_sha256:
        raise ValueError(f"{name}: belongs to another {DESCRIPTION}: one of the two was replaced; make the store again")
    full, rest = divmod(clips["count"], clips["per_shard"])
    sizes = [clips["per_shard"]] * full + [rest] * bool(rest)
    if [shard["clips"] for shard in manifest["shards"]] != sizes:
        raise ValueError(f"{name}: shards: do not add up to {clips['count']} clips, {clips['per_shard']} a shard")
    if manifest["rows"] != clips["count"] * description["views"]["count"]:
        raise ValueError(f"{name}: rows = {manifest['rows']}: must be a row for each clip and view")
    for number, shard in enumerate(manifest["shards"]):
        hashes = [file["sha256"] for file in shard["files"].values()]
        if set(shard["files"]) != columns or not all(map(SHA256.fullmatch, hashes)):
            raise ValueError(f"{name}: shards.{number}.files: must be one for each of {', '.join(sorted(columns))}")
    return manifest


def require_compatible(
    description: Mapping[str, Any], expected: Mapping[str, Any], name: str, *, exactly: bool = False
) -> None:
    """ValueError that names the first difference where a store is not as expected.

    `expected` are some of the description's keys, nested ones too, with the values that they must have, or `exactly`
    all of them; lists must be equal as a whole.
    """
    difference = _first_difference(description, expected, "", exactly)
    if difference:
        raise ValueError(f"store {name!r}: {difference}; choose a store that was made for this, or make one")


def _first_difference(actual: Any, expected: Any, place: str, exactly: bool) -> str:
    """The first place at which they differ, and how; empty where they do not."""
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in actual if exactly and key not in expected)]:
            inner = f"{place}.{key}" if place else str(key)
            if key not in expected:
                return f"{inner} is {actual[key]!r}, expected none"
            if key not in actual:
                return f"{inner} is missing, expected {expected[key]!r}"
            if found := _first_difference(actual[key], expected[key], inner, exactly):
                return found
        return ""
    if isinstance(actual, list) and isinstance(expected, list | tuple):
        pairs = enumerate(zip_longest(actual, expected, fillvalue="no value"))
        differences = (_first_difference(one, other, f"{place}[{number}]", exactly) for number, (one, other) in pairs)
        return next(filter(None, differences), "")
    return "" if actual == expected else f"{place} is {actual!r}, expected {expected!r}"
