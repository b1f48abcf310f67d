"""Untaught controls train beside their students in the real loop: as if each had been trained alone."""

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import event_records
from tests.resumed import rows_uninterrupted_and_resumed
from workloads.train import loop

LENGTHS = {
    "demo": ("schedule.burn_in=4", "schedule.period=3", "schedule.turns=4", "models.cnn.arch.dropout=0.3"),
    "generations": ("schedule.steps=4", "models.cnn1.arch.dropout=0.3"),
    "mutual": ("schedule.burn_in=4", "schedule.steps=4", "schedule.ramp=0"),
}


def digests(run):
    assert loop(run) == "done"
    *_, result = (record for record in event_records(run) if record["kind"] == "result")
    return {name: row["weights_sha256"] for name, row in result["models"].items()}


@pytest.mark.parametrize("name", LENGTHS)
def test_controls_are_the_models_of_the_run_without_edges_and_change_nothing(tiny, start, name):
    compared = digests(start(tiny(name, *LENGTHS[name], "compare=true")))
    taught = digests(start(tiny(name, *LENGTHS[name])))
    untaught = digests(start(tiny(name, *LENGTHS[name], "edges=[]")))
    assert taught.items() <= compared.items()
    controls = {name: digest for name, digest in compared.items() if name not in taught}
    assert controls
    for control, digest in controls.items():
        student = control.removesuffix("_untaught")
        assert digest == untaught[student] != taught[student]


@pytest.mark.parametrize("turns", ["schedule.turns=2", "schedule.turns=4"])
def test_a_run_that_compares_resumes_bit_for_bit(tiny, start, turns):
    """Cut off after step 5: the vit's control has begun, the cnn's begins after the resume."""
    recipe = tiny("demo", *LENGTHS["demo"], turns, "compare=true", "train.checkpoint_every=5")
    uninterrupted, resumed = rows_uninterrupted_and_resumed(start, recipe)
    assert uninterrupted.keys() == {"cnn", "vit", "cnn_untaught", "vit_untaught"}
    assert {name: row["weights_sha256"] for name, row in uninterrupted.items()} == {
        name: row["weights_sha256"] for name, row in resumed.items()
    }


def test_a_control_learns_as_many_steps_as_its_student_and_teaches_none(tiny, start):
    run = start(tiny("demo", *LENGTHS["demo"], "compare=true"))
    assert loop(run) == "done"
    *_, result = (record for record in event_records(run) if record["kind"] == "result")
    rows = result["models"]
    for student in ("cnn", "vit"):
        control = rows[f"{student}_untaught"]
        assert control["steps_learned"] == rows[student]["steps_learned"]
        assert control["steps_taught"] == 0


def test_taggers_come_with_their_test_logits(tiny, start):
    run = start(tiny("one-way", "compare=true", "schedule.teacher_steps=2", "schedule.steps=2"))
    assert loop(run) == "done"
    clips = len(run.prepared.splits.test)
    models = run.session.work_dir.parent / "models"
    for name in ("cnn", "vit", "vit_untaught"):
        (file,) = (models / name).rglob("test.safetensors")
        predictions = load_file(file)
        assert predictions["logits_NC"].shape == predictions["y_NC"].shape == (clips, len(run.prepared.dataset.tags))
        assert torch.equal(
            predictions["y_NC"], torch.from_numpy(run.prepared.dataset.targets(run.prepared.splits.test))
        )
