"""A description is refused where it contradicts itself, and a store that is not the expected one, with the place."""

import copy
from typing import Any

import pytest

from tests import stores
from workloads.runtime.json_files import json_text
from workloads.stores.description import parse_description, require_compatible

CLIPS = {"count": 5, "per_shard": 2, "sha256": "b" * 64}


def described(**changes: Any) -> Any:
    return {"format": 1, **stores.about(**changes), "clips": CLIPS}


def test_a_description_is_read_as_it_was_written():
    for given in (described(), described(k=3, embedding=8)):
        assert parse_description(json_text(given), "d.json") == given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"format = 2: only format 1 can be read"),
        ({"format": 2, "columns.outputs.dtype": "int4"}, r"format = 2: only format 1 can be read"),
        ({"tags": ["a", "a"]}, "tags: needs at least one, each once"),
        ({"labels": "some"}, "labels: "),
        ({"tags": ["a"]}, r"columns\.outputs\.width = 10: there are 1 tags"),
        ({"columns": {}}, "columns: needs at least one"),
        ({"columns.outputs.teachers": ["vit"]}, "columns.outputs.teachers: must be some of cnn"),
        ({"columns.outputs.mean_of": "logits"}, "columns.outputs.mean_of: belongs to"),
        ({"columns.outputs.k": 3}, "columns.outputs.k: belongs to the layout topk"),
        ({"columns.outputs.layout": "topk"}, "columns.outputs.k: belongs to the layout topk"),
        ({"columns.outputs.layout": "topk", "columns.outputs.k": 11}, r"k = 11: a row has 10 values"),
        ({"columns": {"../x": stores.columns(tags=10)["outputs"]}}, "a column's name is a small letter"),
        ({"views.count": 0}, "views.count: "),
        ({"views.version": -1}, "views.version: input should be greater than or equal to 0"),
        ({"columns.outputs.dtype": "uint8"}, "dtype = 'uint8': belongs to logits or probabilities of frames"),
        ({"columns.outputs.frames": {"count": 5}}, "frames.hop_seconds: field required"),
        ({"columns.outputs.holds": "profile"}, "frames: a profile has frames, .* and a width of 1"),
    ],
)
def test_contradictions_are_named(change, message):
    given = described()
    for place, value in change.items():
        *parents, key = place.split(".") if place != "columns" else [place]
        inner = given
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    with pytest.raises(ValueError, match=rf"^d\.json: .*{message}"):
        parse_description(json_text(given), "d.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tags", 3), "dog", r"tags\[3\] is 'tag3', expected 'dog'"),
        (("teachers", 0, "weights_sha256"), "c" * 64, r"teachers\[0\]\.weights_sha256 is 'a+', expected 'c+'"),
        (("views", "augment", "roll"), 0.1, r"views\.augment\.roll is 0\.5, expected 0\.1"),
        (("views", "augment", "gain_db"), 6.0, r"views\.augment\.gain_db is missing, expected 6\.0"),
        (
            ("columns", "outputs", "holds"),
            "probabilities",
            r"columns\.outputs\.holds is 'logits', expected 'probabilities'",
        ),
    ],
)
def test_the_first_difference_from_what_is_expected_is_named(place, value, message):
    found, expected = described(), {key: copy.deepcopy(described()[key]) for key in ("tags", "teachers", "views")}
    expected["columns"] = {"outputs": {"holds": "logits"}}
    require_compatible(found, expected, "s3://b/store")
    inner: Any = expected
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=rf"^store 's3://b/store': {message}; choose a store"):
        require_compatible(found, expected, "s3://b/store")


def test_a_longer_list_is_a_difference():
    with pytest.raises(ValueError, match=r"tags\[10\] is 'no value', expected 'more'"):
        require_compatible(described(), {"tags": [*described()["tags"], "more"]}, "s")
