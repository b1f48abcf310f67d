"""`antiphon models --timm PATTERN`."""

import json
from typing import Any


def test_networks_of_timm_are_listed_with_sizes_at_the_length_of_the_clips(antiphon: Any) -> None:
    done = antiphon("models", "--timm", "resnet18*", "--seconds", "1", "--front-end", "logmel64", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    rows = {row["name"]: row for row in printed["models"]}
    assert {"resnet18", "resnet18d"} <= rows.keys()
    assert (printed["clip_seconds"], printed["refused"]) == (1.0, {})
    assert rows["resnet18"]["family"] == "timm"
    assert rows["resnet18"]["front_end"] == "logmel64"
    # ResNet-18 has 11,689,512 parameters with 3 channels and 1000 classes
    assert rows["resnet18"]["params"] == 11_689_512 - 2 * 64 * 49 - 473 * 513
    assert rows["resnet18"]["macs"] == resnet18_macs(64, 100)


def resnet18_macs(height: int, width: int) -> int:
    """From the paper's table: a stem of 7 x 7, four stages of two blocks, 1 x 1 where the width doubles."""
    height, width = -(-height // 2), -(-width // 2)
    macs = 64 * 49 * height * width
    height, width = -(-height // 2), -(-width // 2)
    macs += 4 * 64 * 64 * 9 * height * width
    for channels in (128, 256, 512):
        height, width = -(-height // 2), -(-width // 2)
        macs += (3 * channels * 9 + channels // 2 * 9 + channels // 2) * channels * height * width
    return macs + 512 * 527


def test_networks_of_timm_that_do_not_take_the_clips_are_named_with_the_reason(antiphon: Any) -> None:
    done = antiphon("models", "--timm", "dla34", "--seconds", "1.01")
    assert done.code == 0, done.err
    assert "set front_end.frames = 128" in " ".join(done.out.split())
    for arguments, message in (
        (("--timm", "resnot*"), "--timm 'resnot*': none of timm's"),
        (("--timm", "dla34", "--front-end", "waveform16k"), "--front-end 'waveform16k': no such log-mel"),
        (("--timm", "dla34", "--only", "mn"), "--only 'mn': is for the published networks; leave it out with --timm"),
        (("--only", "mn", "--front-end", "logmel64"), "--front-end 'logmel64': is for timm's networks; give --timm"),
        (("--timm", "dla34", "--seconds", "0"), "--seconds 0: must be above 0, at most"),
        (("--only", "mn", "--seconds", "-1"), "--seconds -1: must be above 0, at most"),
        (("--only", "mn", "--seconds", "nan"), "--seconds nan: must be above 0, at most"),
    ):
        done = antiphon("models", *arguments)
        assert done.code == 2
        assert message in " ".join(done.err.split())
