"""Files that are damaged, or that something else wrote, are named with the place; none gives a traceback."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from typing_extensions import TypedDict

from workloads.runtime import checkpoint
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.json_files import ARRAY, Record, TaggerState, parse_json, parse_marker

TAGGER = {
    "kind": "tagger",
    "name": "vit",
    "model": {},
    "tags": ["dog"],
    "labels": "multi",
    "clip_seconds": 1.0,
    "long_clips": "windows",
    "clip_rate": 16_000,
}


class Pair(TypedDict):
    pair: Annotated[tuple[int, float], ARRAY]


@pytest.mark.parametrize(
    ("content", "shape", "message"),
    [
        (b"", dict[str, Any], "f.json: is not JSON"),
        (b"\xff\xfe{}", dict[str, Any], "f.json: is not JSON"),
        (b"{'a': 1}", dict[str, Any], "f.json: is not JSON"),
        (b"[]", dict[str, Any], "f.json: its content: input should be a valid dictionary"),
        (b"[" * 100_000, dict[str, Any], "f.json: is nested too deeply"),
        (b"{}", Record, "f.json: kind: field required"),
        (b'{"kind": 3}', Record, "f.json: kind: input should be a valid string"),
        (json.dumps(TAGGER | {"tags": "dog"}).encode(), TaggerState, "f.json: tags: input should be a valid list"),
        (
            json.dumps(TAGGER | {"clip_rate": "16000"}).encode(),
            TaggerState,
            "f.json: clip_rate: input should be a valid i",
        ),
        (b'{"kind": "metrics", "step": "10", "values": {}}', Record, "f.json: step: input should be a valid in"),
        (
            b'{"kind": "metrics", "step": 1, "values": {"a": true}}',
            Record,
            "f.json: values.a: input should be a",
        ),
        (b'{"pair": [1, "2"]}', Pair, "f.json: pair.1: input should be a valid number"),
        (b'{"pair": [1]}', Pair, "f.json: pair.1: field required"),
        (json.dumps(TAGGER | {"data": None}).encode(), TaggerState, "f.json: data: input should be a valid dictionary"),
        (
            json.dumps(TAGGER | {"data": {"format": "dcase"}}).encode(),
            TaggerState,
            "f.json: data.fingerprint: field req",
        ),
        (json.dumps(TAGGER | {"labels": "none"}).encode(), TaggerState, "f.json: labels: input should be 'single' or"),
    ],
)
def test_what_is_no_such_file_is_named_with_the_place(content: bytes, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match="damaged or written by something else") as caught:
        parse_json(content, "f.json", shape)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_integers_pass_as_floats_and_arrays_as_tuples() -> None:
    assert parse_json(json.dumps(TAGGER | {"clip_seconds": 1}), "f", TaggerState)["clip_seconds"] == 1
    assert parse_json(b'{"pair": [1, 2]}', "f", Pair)["pair"] == [1, 2]


def test_keys_that_a_shape_does_not_name_are_kept() -> None:
    assert parse_json(json.dumps(TAGGER | {"val": {"mAP": 0.5}}), "f", TaggerState)["val"] == {"mAP": 0.5}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "does not list state.json and weights, so they cannot be verified"),
        ({"state.json": "ab"}, "does not list state.json and weights"),
        ({"weights.safetensors": "ab"}, "does not list state.json and weights"),
        ({"state.json": "ab", "a.safetensors": "ab", "../x": "ab"}, "lists '../x', which is no file of this folder"),
        ({"state.json": 7, "a.safetensors": "ab"}, "files.state.json: input should be a valid string"),
    ],
)
def test_a_marker_that_verifies_nothing_is_refused(files: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_marker(json.dumps({"files": files}), MARKER)


def test_weights_that_a_marker_does_not_list_are_not_read(tmp_path: Path) -> None:
    """A changed file and an emptied marker used to pass as verified."""
    folder = checkpoint.write(tmp_path / "vit", tensors={"weights": {"w": torch.ones(2)}}, state=TAGGER)
    assert checkpoint.read_state(folder)["name"] == "vit"
    (folder / MARKER).write_text('{"files": {}}')
    with pytest.raises(ValueError, match="cannot be verified"):
        checkpoint.read_state(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 3_000_000, "is nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "is nested too deeply"),
        (b"\xff\xfe{}", "is not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not JSON"),
        (b"null", "its content: input should be a valid dictionary"),
    ],
)
def test_content_that_no_reader_could_walk_through_is_refused(content, message):
    with pytest.raises(ValueError, match=r"^FILE: [^\n]+$") as caught:
        parse_json(content, "FILE")
    assert message in str(caught.value)
    assert parse_json(json.dumps({"a": [[]] * 1000}), "FILE") == {"a": [[]] * 1000}
