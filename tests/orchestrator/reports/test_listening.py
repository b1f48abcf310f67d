"""The report plays the clips that were got most wrong, unless there are none, and takes nothing else for a sound."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from orchestrator.reports.listening import band_of
from orchestrator.reports.run_page import write_report
from orchestrator.reports.run_shapes import MistakesRecord
from tests.orchestrator.reports.test_run_page import recipe, run_records
from tests.pages import Page
from workloads.runtime.json_files import require_shape

BANDS, FRAMES = 64, 160


def noise(seconds: float = 10.0, rate: int = 32_000) -> bytes:
    """The largest sound that a run records."""
    file, draw = io.BytesIO(), np.random.default_rng(0)
    samples = draw.normal(0, 0.1, round(seconds * rate)).astype(np.float32)
    options: Any = {"bitrate_mode": "VARIABLE", "compression_level": 0.9}
    soundfile.write(file, samples, rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    return file.getvalue()


def record(clips: int = 4) -> dict[str, Any]:
    """A record of the largest size that a run writes."""
    audio = base64.b64encode(noise()).decode().rstrip("=")
    said = {"said": {"rain": 0.9, "dog": 0.08, "<b>sea</b> & waves": 0.02}, "truth": {"dog": 0.08}}
    mel = [[(7 * band + frame) % 100 for frame in range(FRAMES)] for band in range(BANDS)]
    clip = {"truth": ["dog"], "models": {"cnn": said, "vit": said}, "top_hz": 16_000, "audio": audio, "mel": mel}
    clip |= {"seconds": 10.0, "whole_seconds": 12.5}
    shown = [clip | {"clip_id": f"clip-{number}"} for number in range(clips)]
    return {"t": 1_795_000_000_000, "kind": "mistakes", "step": 100, "clips": shown}


def written(records: list[dict[str, Any]], out: Path) -> str:
    write_report(records, recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=out)
    return out.read_text()


def test_the_page_plays_what_was_recorded_and_stays_small(tmp_path: Path) -> None:
    records = run_records()
    text = written([*records[:-2], record(), *records[-2:]], tmp_path / "report.html")
    assert len(text.encode()) < 1_500_000
    page = Page(text)
    sounds = [link for link in page.loads if link.startswith("data:audio/mpeg;base64,")]
    assert len(sounds) == 4
    assert base64.b64decode(sounds[0].partition(",")[2], validate=True) == noise()
    assert page.tables["said-1"][1] == ["cnn", "rain 0.90, dog 0.08, <b>sea</b> & waves 0.02", "dog 0.08"]
    assert "clip-0, the first 10 of 12.5 s" in text
    axes = page.figures["listen-1"]["layout"]
    assert axes["xaxis"]["title"]["text"] == "seconds"
    assert axes["yaxis"]["title"]["text"] == "Hz"
    assert axes["yaxis"]["ticktext"][:3] == ["0", "250", "500"]
    assert "media-src data:" in text


def test_a_report_of_a_run_that_recorded_none_has_no_such_section(tmp_path: Path) -> None:
    text = written(run_records(), tmp_path / "report.html")
    assert "<audio" not in text
    assert 'id="listen"' not in text


def test_bands_are_where_their_frequencies_are() -> None:
    assert band_of(0, top_hz=8000, bands=64) == -1
    assert band_of(8000, top_hz=8000, bands=64) == 64
    assert band_of(1000, top_hz=8000, bands=64) == pytest.approx(65 * 999.9855 / 2840.0230 - 1, abs=1e-4)


@pytest.mark.parametrize("audio", ['"><script>alert(1)</script>', "A" * 80_001, "data:text/html,x"])
def test_other_sounds_are_refused(audio: str) -> None:
    wrong = record(clips=1)
    require_shape(wrong, "events.jsonl", MistakesRecord)
    wrong["clips"][0]["audio"] = audio
    with pytest.raises(ValueError, match="audio"):
        require_shape(wrong, "events.jsonl", MistakesRecord)
