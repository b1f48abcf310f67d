"""The table of predictions on a store that fails for a moment: written once, and no success is taken for a clash."""

from pathlib import Path

import pytest
import torch

from orchestrator.artifacts.predictions import write_predictions
from orchestrator.storage import object_store
from workloads.data.clips import Clip

CLIPS = [Clip("a", "a.wav", ("rain",), 0, "s")]


@pytest.mark.parametrize("answer_is_lost", [False, True])
def test_an_outage_loses_no_predictions(tmp_path: Path, monkeypatch, answer_is_lost: bool) -> None:
    create, calls = object_store.create_exclusively, []

    def fail_once(uri: str, data: bytes) -> bool:
        calls.append(uri)
        if len(calls) > 1:
            return create(uri, data)
        if answer_is_lost:
            create(uri, data)
        raise ConnectionError("the server closed the connection")

    monkeypatch.setattr(object_store, "create_exclusively", fail_once)
    out = str(tmp_path / "p.csv")
    write_predictions(out, CLIPS, torch.tensor([[0.25]]), ["rain"])
    assert calls == [out, out]
    assert Path(out).read_text().splitlines()[1].endswith("rain,0.25")


def test_the_file_of_another_process_stays(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    out.write_text("theirs")
    with pytest.raises(ValueError, match="exists already"):
        write_predictions(str(out), CLIPS, torch.tensor([[0.25]]), ["rain"])
    assert out.read_text() == "theirs"
