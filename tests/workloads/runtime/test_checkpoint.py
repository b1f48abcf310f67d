"""A checkpoint is either intact or refused."""

import json

import pytest
import torch

from workloads.runtime import checkpoint
from workloads.runtime.opener import LocalFiles


@pytest.fixture
def saved(tmp_path):
    tensors = {"cnn": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}}
    return checkpoint.write(tmp_path / "step", tensors=tensors, state={"step": 3})


def test_what_was_written_is_read_back(saved):
    assert checkpoint.read_state(saved) == {"step": 3}
    tensors = checkpoint.read_tensors(saved, "cnn")
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(tensors["b"], torch.tensor([1, 2]))


def test_a_folder_without_marker_is_no_checkpoint(saved):
    (saved / "COMMITTED.json").unlink()
    with pytest.raises(ValueError, match="never finished"):
        checkpoint.read_state(saved)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_one_wrong_byte_is_refused(saved, damage):
    path = saved / "cnn.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"cnn.safetensors is missing or differs"):
        checkpoint.read_state(saved)


def test_an_existing_folder_is_never_overwritten(saved):
    with pytest.raises(FileExistsError):
        checkpoint.write(saved, tensors={}, state={})
    assert json.loads((saved / "state.json").read_text()) == {"step": 3}


def test_the_digest_depends_on_every_bit_but_not_on_the_order():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    assert checkpoint.weights_digest(first) == checkpoint.weights_digest(dict(reversed(first.items())))
    flipped = {**first, "a": torch.tensor([1.0, torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))])}
    assert checkpoint.weights_digest(first) != checkpoint.weights_digest(flipped)
    assert checkpoint.weights_digest(first) != checkpoint.weights_digest({"c": first["a"], "b": first["b"]})


def test_weights_come_from_a_folder_or_a_single_file(tmp_path):
    folder = checkpoint.write(
        tmp_path / "cnn", tensors={"weights": {"x": torch.ones(2)}}, state={"tags": ["dog", "rain"]}
    )
    for uri, expected in ((str(folder), ["dog", "rain"]), (str(folder / "weights.safetensors"), None)):
        weights, state = checkpoint.read_weights(LocalFiles(), uri)
        assert torch.equal(weights["x"], torch.ones(2))
        assert state.get("tags") == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "COMMITTED.json").unlink(),
            "neither a safetensors file nor a finished tagger's folder",
        ),
        (
            lambda folder: (folder / "weights.safetensors").unlink(),
            "neither a safetensors file nor a finished tagger's",
        ),
        (lambda folder: flip(folder / "weights.safetensors"), "weights.safetensors differs from its SHA-256"),
        (lambda folder: flip(folder / "state.json"), "state.json differs from its SHA-256; it was damaged or changed"),
    ],
)
def test_weights_of_an_unfinished_or_damaged_folder_are_refused(tmp_path, damage, message):
    folder = checkpoint.write(tmp_path / "cnn", tensors={"weights": {"x": torch.ones(2)}}, state={"tags": ["dog"]})
    damage(folder)
    with pytest.raises(ValueError, match=message):
        checkpoint.read_weights(LocalFiles(), str(folder))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
