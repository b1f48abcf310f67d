"""Tables of events: which clip a row is of, what is refused, and what is known of clips and tags without rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.packs import pack_as, write_clips
from workloads.config.data import Data
from workloads.data.augment import View, clean_view
from workloads.data.events import Event, heard_events
from workloads.data.manifest import read_dataset
from workloads.distill.frames import frame_labels
from workloads.evaluate.frames import score_frames
from workloads.models.profiles import TimeGrid
from workloads.runtime.opener import LocalFiles
from workloads.train import advance, loop

CLIPS = "clip_id,path,tags,fold\na,x/one.wav,dog;rain,1\nb,x/two.wav,rain,2\nc,three.wav,dog,3\nd,four.wav,,4\n"
EVENTS = "clip_id,onset,offset,event_label\na,0.5,1.25,dog\na,0.1,3,rain\nb,,,\nd,,,\n"


def read(folder: Path, events: str, *, name: str = "events.csv", clips: str = CLIPS) -> Any:
    (folder / "clips.csv").write_text(clips)
    (folder / name).write_text(events)
    paths = {"manifest": str(folder / "clips.csv"), "root": str(folder), "events": str(folder / name)}
    return read_dataset(Data(format="manifest", labels="multi", **paths), LocalFiles())


def test_rows_are_events_of_their_clips_by_onset(tmp_path: Path) -> None:
    a, b, c, d = read(tmp_path, EVENTS).clips
    assert a.events == (Event("rain", 0.1, 3.0), Event("dog", 0.5, 1.25))
    assert (b.events, c.events, d.events) == ((), None, ()), "no event; no row; no event"


@pytest.mark.parametrize(("name", "separator"), [("strong.tsv", "\t"), ("strong.csv", ",")])
def test_clips_may_be_named_by_their_files(name: str, separator: str, tmp_path: Path) -> None:
    """As DESED's tables do."""
    rows = [
        ("filename", "onset", "offset", "event_label"),
        ("one.wav", "0", "1", "dog"),
        ("x/two.wav", "0", "2", "rain"),
    ]
    dataset = read(tmp_path, "\n".join(map(separator.join, rows)) + "\n", name=name)
    assert [clip.events for clip in dataset.clips] == [(Event("dog", 0, 1),), (Event("rain", 0, 2),), None, None]


def test_other_events_are_another_data_set_for_a_run(tmp_path: Path) -> None:
    first = read(tmp_path, EVENTS)
    assert first.events_sha256 == read(tmp_path, EVENTS.replace("0.10", "0.1")).events_sha256
    assert first.events_sha256 != read(tmp_path, EVENTS.replace("1.25", "1.26")).events_sha256
    assert first.fingerprint() == read(tmp_path, EVENTS.replace("1.25", "1.26")).fingerprint(), "the same clips"


def test_rows_of_other_clips_are_counted(tmp_path: Path) -> None:
    dataset = read(tmp_path, EVENTS + "e,0,1,dog\ne,1,2,dog\nf,0,1,dog\n")
    assert dataset.warnings == ("data.events: 3 rows are of clips that the data set does not have: e, f",)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("onset,offset,event_label\n0,1,dog\n", "no column clip_id or filename; it must say of which clip"),
        ("clip_id,onset,event_label\na,0,dog\n", "no column offset; it has clip_id, onset, event_label"),
        ("clip_id,onset,offset,event_label\na,1,1,dog\n", r"row 1: offset = 1: must be after the onset, 1 s"),
        ("clip_id,onset,offset,event_label\na,x,1,dog\n", r"row 1: onset = 'x': must be a number from 0 to 1e\+06"),
        ("clip_id,onset,offset,event_label\na,0,1,\n", "row 1: event_label is empty"),
        ("clip_id,onset,offset,event_label\nb,0,1,dog\n", "clip 'b' does not have this tag, its tags are rain; add it"),
        ("clip_id,onset,offset,event_label\nd,0,1,dog\n", "clip 'd' does not have this tag, its tags are none"),
        (
            "clip_id,onset,offset,event_label\na,0,1,dog\na,,,\n",
            "row 2: without onset, .* clip 'a' has no event, and other",
        ),
        ("clip_id,onset,offset,event_label\nz,0,1,dog\n", "none of its rows is of a clip of the data set"),
    ],
)
def test_mistakes_name_the_row_and_the_fix(events: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, events)


def test_a_file_s_name_that_two_clips_have_does_not_say_whose_an_event_is(tmp_path: Path) -> None:
    clips = "clip_id,path,tags\na,x/one.wav,dog\nb,y/one.wav,dog\n"
    events = "filename,onset,offset,event_label\none.wav,0,1,dog\n"
    with pytest.raises(
        ValueError, match=r"filename = 'one.wav': 2 clips have a file of this name; name clips by clip_id"
    ):
        read(tmp_path, events, clips=clips)
    with pytest.raises(ValueError, match=r"data.events = '.*events.json': must end in .csv, .tsv or .parquet"):
        read(tmp_path, events, name="events.json")
    with pytest.raises(ValueError, match="clips of synthetic know when they sound"):
        Data(events="x.csv")


def heard(view: View, *events: tuple[str, float, float], samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of four steps of a view of 1 s at 100 Hz, of a clip that has both tags, and which tags are known."""
    found = heard_events(
        [tuple(Event(*event) for event in events)],
        [samples],
        [view],
        length=100,
        rate=100,
        columns={"a": 0, "b": 1},
        y_SC=np.ones((1, 2), np.float32),
        weight_B=torch.ones(1),
        partner_B=torch.zeros(1, dtype=torch.long),
    )
    starts_P = torch.tensor([0, 25, 50, 75])
    y_BPC, known_BC = found.targets(starts_P, starts_P + 25)
    return y_BPC[0, :, 0], known_BC[0]


def test_events_are_cut_and_rolled_as_the_clip_is() -> None:
    assert heard(clean_view(), ("a", 0.25, 0.5))[0].tolist() == [0, 1, 0, 0]
    assert heard(clean_view(), ("a", 0.24, 0.51))[0].tolist() == [1, 1, 1, 0], "every step that it meets"
    assert heard(clean_view(), ("a", 1.2, 1.9))[0].tolist() == [0, 0, 0, 0], "after the cut"
    late = View(crop=0.999)  # the second half of 2 s
    assert heard(late, ("a", 0.5, 1.3))[0].tolist() == [1, 1, 0, 0]
    assert heard(View(roll=0.5), ("a", 0.5, 1.0))[0].tolist() == [1, 1, 0, 0]
    assert heard(View(roll=0.25), ("a", 0.6, 0.99))[0].tolist() == [1, 0, 0, 1], "over the end"


def test_when_a_tag_without_an_event_sounds_is_not_known() -> None:
    assert heard(clean_view(), ("a", 0.0, 0.5))[1].tolist() == [1, 0]
    assert heard(clean_view(), ("a", 1.2, 1.9), ("b", 1.2, 1.9))[1].tolist() == [1, 1], "it is: after the cut"


def test_a_run_learns_from_a_table_and_scores_by_it(tiny: Any, start: Any, tmp_path: Path) -> None:
    """Real files of unequal length, plain and packed; a resumed run notices that the table was changed."""
    audio = [*write_clips(tmp_path / "audio", 60), "data.labels=multi"]
    clips = read_dataset(tiny("demo", *audio).data, LocalFiles()).clips
    lines = [
        f"{clip.clip_id},{0.1 * (number % 4):g},{0.4 + 0.1 * (number % 3):g},{clip.tags[0]}"
        for number, clip in enumerate(clips)
    ]
    table = tmp_path / "events.csv"
    table.write_text("clip_id,onset,offset,event_label\n" + "\n".join(lines[:50]) + "\n")
    model = "models={cnn={arch={family='frame_mn', width=0.1, bn_momentum=0.1}, frame_labels=true}}"
    own = [
        model,
        "edges=[]",
        "schedule={kind='mutual', burn_in=0, steps=4}",
        f"data.events={table}",
        "train.checkpoint_every=1",
    ]
    recipe = tiny("demo", *audio, *own)
    run = start(recipe)
    shard = run.batches.shard(0, 0)
    labels = frame_labels(torch.zeros(8, 25, 3), shard, TimeGrid(0.0, 0.04, 25), rate=recipe.rate)
    by_id = {clip.clip_id: clip for clip in run.prepared.splits.train}
    known = [by_id[clip_id].events is not None for clip_id in shard.clip_ids]
    assert labels.known_BC.all(1).tolist() == known
    assert 0 < labels.y_BQC.sum() < labels.y_BQC.numel() / 3
    for _ in advance(run, until=2):
        pass
    table.write_text(table.read_text().replace("0.4,", "0.41,"))
    with pytest.raises(ValueError, match=r"data.events: its events differ from those this run was started with"):
        start(recipe, checkpoints_of=run)
    pack_as(tiny("demo", *audio), str(tmp_path / "pack"), "flac")
    packed = start(tiny("demo", "data.format=packed", f"data.root={tmp_path}/pack", "data.labels=multi", *own))
    assert loop(packed) == "done"
    clips_of_pack = [clip for clip in packed.prepared.splits.test if clip.events is not None]
    assert score_frames([torch.zeros(25, 3)] * len(clips_of_pack), clips_of_pack, packed.prepared.dataset).keys() == {
        "frame_mAP"
    }
