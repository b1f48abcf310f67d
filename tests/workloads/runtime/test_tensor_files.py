"""Files of tensors that were damaged, or made to take far more memory than they have bytes, are refused in one line."""

import io
import json
import zipfile

import pytest
import torch

from workloads.runtime.tensor_files import parse_safetensors, parse_torch, require_stored


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rezipped(content: bytes, *, pickle: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The file again, with another pickle in it, or compressed."""
    out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(out, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, pickle if pickle and name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def header(text: str | bytes) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text


PLAIN = saved({"a": torch.ones(3, 4)})
NUM = b"K\x0ctq"  # of the storage, 12, in the pickle of PLAIN
CLAIMED = zipfile.ZipFile(io.BytesIO(PLAIN)).read("archive/data.pkl").replace(NUM, b"\x8a\x05\x00\x00\x00\x00\x10tq")
DEEP = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 20_000 + b"}" + b"s" * 20_000 + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file that torch.save wrote, or a damaged one"),
        (b"\x80\x02" + b"]" * 100_000, "not a file that torch.save wrote"),
        (PLAIN[: len(PLAIN) // 2], "not a file that torch.save wrote"),
        (rezipped(PLAIN, pickle=CLAIMED), "does not match expected size"),
        (rezipped(saved({"a": torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False)[:-9], "not a file that torch.save wrote"),
    ],
)
def test_torch_files_that_claim_more_than_they_hold(content, message):
    with pytest.raises(ValueError, match=r"^FILE: [^\n]+$") as caught:
        parse_torch(content, "FILE")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_deep_pickles_are_read_without_recursion():
    assert list(parse_torch(rezipped(PLAIN, pickle=DEEP), "FILE")) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (header(b"[" * 1_000_000), "not a safetensors file"),
        (header("[" * 100 + "]" * 100), "not a safetensors file"),
        ((2**62).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (
            header(json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
            "not a safetensors",
        ),
        (header(json.dumps({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}})), "not a safe"),
        (header(b'{"a": \xff}'), "not a safetensors file"),
    ],
)
def test_safetensors_headers_that_claim_more_than_the_file(content, message):
    with pytest.raises(ValueError, match=r"^FILE: [^\n]+$") as caught:
        parse_safetensors(content, "FILE")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch.zeros(1).expand(10**6, 10**6),
            r"claims \(1000000, 1000000\) numbers, 4,000,000,000,000 bytes, and 4 are",
        ),
        (torch.eye(3).to_sparse(), "no plain tensor of numbers"),
        (torch.ones(3, device="meta"), "no plain tensor of numbers"),
    ],
)
def test_tensors_without_numbers_of_their_own(tensor, message):
    read = parse_torch(saved({"a": tensor, "b": torch.ones(2)}), "FILE")
    with pytest.raises(ValueError, match=f"FILE: 'a' {message}|FILE: 'a' is {message}"):
        require_stored(read, "FILE")
    shared = torch.ones(4, 4)
    require_stored(parse_torch(saved({"a": shared, "b": shared[1:], "c": shared.T}), "FILE"), "FILE")
