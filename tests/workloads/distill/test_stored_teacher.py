"""A store as a teacher: probabilities as they were stored, mixed as clips are, with nothing silently wrong."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.writer import begin_store, finish_store, unwritten, write_shard
from tests import stores
from workloads.config.edge import Edge
from workloads.data.shard import Mixture, Shard, ViewKey
from workloads.distill.edges import edge_term, open_gate, student_loss
from workloads.distill.stored_teacher import StoredTeacher
from workloads.evaluate.metrics import teacher_entropy
from workloads.stores.reader import StoreReader
from workloads.stores.topk import TopK

CLIPS = ["a", "b", "c"]
TAGS = 4
VALUES = np.array([[2.0, -1.0, 0.5, -3.0], [-2.0, 0.25, 1.0, -0.5], [4.0, 3.0, -6.0, 0.0]])
P = 1 / (1 + np.exp(-VALUES))


def teacher(folder: Path, rows: np.ndarray | TopK, *, holds: str = "logits", labels: str = "multi", **edge: Any) -> Any:
    """The teacher of a store that has these rows in its only view."""
    k = rows.tags.shape[-1] if isinstance(rows, TopK) else 0
    columns = stores.columns(tags=TAGS, k=k)
    columns["outputs"]["holds"] = holds
    about = stores.about(tags=TAGS, views=1, columns=columns, labels=labels)
    uri = str(folder / "store")
    description, plan = begin_store(uri, about, CLIPS, clips_per_shard=3)
    (shard,) = unwritten(uri, description, plan)
    one_view = TopK(rows.tags[:, None], rows.values[:, None]) if isinstance(rows, TopK) else rows[:, None]
    write_shard(uri, description, shard, {"outputs": one_view})
    finish_store(uri, description, plan)
    reader = StoreReader(uri, FsspecFiles(), copies=folder / "copies")
    own = Edge(teacher=f"store:{uri}", student="cnn", **edge)
    return StoredTeacher(own, reader, "outputs", np.arange(TAGS), labels, 1)


def shard_of(clips: list[str], y_BC: torch.Tensor | None = None, mixture: Mixture | None = None) -> Shard:
    y_BC = torch.zeros(len(clips), TAGS) if y_BC is None else y_BC
    return Shard(
        keys=tuple(ViewKey(clip_id, epoch, 0) for epoch, clip_id in enumerate(clips)),
        x_BT=torch.zeros(len(clips), 1),
        y_BC=y_BC if mixture is None else mixture.of(y_BC),
        known_BC=torch.ones(len(clips), TAGS),
        unmixed_y_BC=y_BC,
        masks_B4=torch.zeros(len(clips), 4),
        mixture=mixture,
    )


@pytest.mark.parametrize(("holds", "rows"), [("logits", VALUES), ("probabilities", P)])
def test_rows_come_in_the_order_of_the_shard_and_of_the_runs_tags(holds, rows, tmp_path):
    source = teacher(tmp_path, rows, holds=holds)
    source.place_C = np.array([3, 1, 0, 2])
    logits_BC = source.outputs(shard_of(["c", "a", "c"]), {})["logits"]
    expected = torch.tensor(VALUES[[2, 0, 2]][:, [3, 1, 0, 2]]).float()
    torch.testing.assert_close(logits_BC, expected, rtol=0, atol=0 if holds == "logits" else 0.02)


@pytest.mark.parametrize(
    ("fill", "expected"), [("zero", 0.0), ("last_mean", 0.125), ("last_half", 0.125), ("uniform", 0.25)]
)
def test_what_top_k_left_out_is_filled(fill, expected, tmp_path):
    """CED's choices; here two tags are kept of four, the least of them has .25."""
    rows = TopK(np.array([[0, 2]] * 3), np.array([[0.25, 0.5]] * 3))
    source = teacher(tmp_path, rows, holds="probabilities", fill=fill)
    p_BC = source.outputs(shard_of(["b"]), {})["logits"].sigmoid()
    torch.testing.assert_close(p_BC, torch.tensor([[0.25, expected, 0.5, expected]]))


def test_random_fill_is_below_the_least_and_always_the_same(tmp_path):
    rows = TopK(np.array([[0, 2]] * 3), np.array([[0.25, 0.5]] * 3))
    source = teacher(tmp_path, rows, holds="probabilities", fill="last_random")
    p_BC = source.outputs(shard_of(["b", "a"]), {})["logits"].sigmoid()
    filled = p_BC[:, [1, 3]]
    assert ((filled > 0) & (filled < 0.25)).all()
    assert filled.unique().numel() == 4
    torch.testing.assert_close(source.outputs(shard_of(["a"]), {})["logits"].sigmoid(), p_BC[1:])


def test_with_single_labels_probabilities_sum_to_one(tmp_path):
    rows = TopK(np.array([[0, 2]] * 3), np.array([[0.2, 0.3]] * 3))
    source = teacher(tmp_path, rows, holds="probabilities", labels="single")
    logits_BC = source.outputs(shard_of(["a"]), {})["logits"]
    torch.testing.assert_close(logits_BC.softmax(1), torch.tensor([[0.4, 0.0, 0.6, 0.0]]), rtol=1e-3, atol=0)
    loss, _ = student_loss(
        torch.zeros(1, TAGS, requires_grad=True),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        [edge_term(source.edge, 1.0, logits_BC)],
        labels="single",
        smoothing=0.0,
    )
    assert loss.isfinite()  # a teacher may exclude a tag


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_mixture_has_efficientats_blended_target(temperature, tmp_path):
    """lambda BCE(z, y) + (1 - lambda) BCE(z, t) = BCE(z, lambda y + (1 - lambda) t), with t the mixture of two
    softened outputs (reference/efficientat.md 4), and = the mixture of two losses, as CED has it."""
    source = teacher(tmp_path, VALUES, weight=0.9, loss="bce", temperature=temperature)
    mixture = Mixture(torch.tensor([0.7, 1.0, 0.6]), torch.tensor([1, 1, 0]))
    y_BC = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    z_BC = torch.tensor([[0.3, -1.0, 2.0, 0.1], [1.0, 0.0, -0.5, 0.2], [0.0, 0.4, 0.2, -2.0]])
    shard = shard_of(CLIPS, y_BC, mixture)
    terms = [edge_term(source.edge, 0.9, source.outputs(shard, {})["logits"])]
    loss, _ = student_loss(z_BC, shard.y_BC, terms, labels="multi", smoothing=0.0)
    t_BC = torch.tensor(VALUES / temperature).sigmoid().float()
    blended_BC = mixture.of(0.1 * y_BC + 0.9 * t_BC)
    torch.testing.assert_close(loss, bce(z_BC, blended_BC))
    weight_B1, own, partner = mixture.weight_B[:, None], 0.1 * y_BC + 0.9 * t_BC, mixture.partner_B
    two_losses = weight_B1 * bce(z_BC, own, reduction="none")
    two_losses += (1 - weight_B1) * bce(z_BC, own[partner], reduction="none")
    torch.testing.assert_close(loss, two_losses.mean())


def test_bce_and_kl_have_the_same_gradient(tmp_path):
    source, gradients = teacher(tmp_path, VALUES), []
    teacher_BC = source.outputs(shard_of(CLIPS), {})["logits"]
    for loss in ("kl", "bce"):
        z_BC = torch.full((3, TAGS), 0.3, requires_grad=True)
        term = edge_term(Edge(teacher="store:s", student="cnn", loss=loss), 1.0, teacher_BC)
        student_loss(z_BC, torch.zeros(3, TAGS), [term], labels="multi", smoothing=0.0)[0].backward()
        gradients.append(z_BC.grad)
    torch.testing.assert_close(*gradients)


def test_labels_teach_exactly_the_side_of_a_mixture_that_has_no_row(tmp_path):
    source = teacher(tmp_path, VALUES, missing="labels")
    y_BC = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    mixture = Mixture(torch.tensor([0.75, 0.75]), torch.tensor([1, 0]))
    p_BC = source.outputs(shard_of(["a", "new"], y_BC, mixture), {})["logits"].sigmoid()
    own = torch.tensor(P[0]).float()
    torch.testing.assert_close(p_BC[0], 0.75 * own + 0.25 * y_BC[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(p_BC[1], 0.75 * y_BC[1] + 0.25 * own, rtol=0, atol=1e-3)


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_gate_opens_for_a_teacher_that_excludes_tags_rightly(labels, tmp_path):
    rows = TopK(np.array([[0], [1], [2]]), np.full((3, 1), 0.9))
    source = teacher(tmp_path, rows, holds="probabilities", labels=labels, gate="better_on_clip")
    teacher_BC = source.outputs(shard_of(CLIPS), {})["logits"]
    y_BC = torch.eye(4)[:3]
    assert torch.isinf(teacher_BC).any()
    assert open_gate(source.edge, torch.zeros(3, TAGS), teacher_BC, y_BC, labels=labels).tolist() == [1.0] * 3
    assert open_gate(source.edge, torch.zeros(3, TAGS), teacher_BC, y_BC.flip(0), labels=labels).tolist() == [0, 1, 0]
    assert math.isfinite(teacher_entropy(teacher_BC, 1.0, labels))
