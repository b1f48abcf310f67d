"""Losses and gates of edges, compared with numbers computed by hand and with equivalent formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from workloads.config.edge import Edge
from workloads.distill.edges import EdgeTerm, edge_term, kd_loss, label_loss, open_gate, student_loss
from workloads.evaluate.step_metrics import shard_metrics

STUDENT = torch.tensor([[0.2, -1.0, 0.5], [1.5, 0.3, -0.7]], dtype=torch.float64).float()
TEACHER = torch.tensor([[1.0, 0.1, -2.0], [-0.5, 0.4, 0.9]])
Y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def edge(**changes) -> Edge:
    return Edge(teacher="cnn", student="vit", **changes)


def test_single_label_kd_is_the_categorical_kl_with_tau_on_the_teacher_only():
    p = (TEACHER / 2.0).softmax(1)
    expected = (p * (p.log() - STUDENT.softmax(1).log())).sum(1)
    torch.testing.assert_close(kd_loss(STUDENT, TEACHER, edge(temperature=2.0), labels="single"), expected)


def test_tempering_both_sides_is_hintons_form():
    p, q = (TEACHER / 3.0).softmax(1), (STUDENT / 3.0).softmax(1)
    expected = 9.0 * (p * (p.log() - q.log())).sum(1)
    both = edge(temperature=3.0, tau_mode="both")
    torch.testing.assert_close(kd_loss(STUDENT, TEACHER, both, labels="single"), expected)


def test_multi_label_kd_has_both_halves_of_the_bernoulli_kl():
    # one clip, one tag: p = sigmoid(0) = 1/2, q = sigmoid(ln 3) = 3/4
    value = kd_loss(torch.tensor([[math.log(3.0)]]), torch.tensor([[0.0]]), edge(), labels="multi")
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), abs=1e-6)


def test_multi_label_kd_has_the_gradient_of_bce_against_the_teachers_probabilities():
    tau = 1.7
    ours, other = STUDENT.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    kd_loss(ours, TEACHER, edge(temperature=tau), labels="multi").mean().backward()
    F.binary_cross_entropy_with_logits(other, (TEACHER / tau).sigmoid()).backward()
    torch.testing.assert_close(ours.grad, other.grad)


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_kd_is_zero_at_agreement_and_finite_at_extremes(labels):
    assert kd_loss(TEACHER, TEACHER, edge(), labels=labels).abs().max() < 1e-6
    extreme = torch.tensor([[500.0, -500.0, 0.0]])
    assert torch.isfinite(kd_loss(-extreme, extreme, edge(), labels=labels)).all()


def test_losses_are_fp32_for_bf16_inputs():
    assert kd_loss(STUDENT.bfloat16(), TEACHER.bfloat16(), edge(), labels="multi").dtype == torch.float32
    assert label_loss(STUDENT.bfloat16(), Y, labels="single").dtype == torch.float32


def test_label_loss_smooths_towards_the_middle_for_several_tags_and_evenly_for_one():
    multi = label_loss(STUDENT, Y, labels="multi", smoothing=0.1)
    torch.testing.assert_close(
        multi, F.binary_cross_entropy_with_logits(STUDENT, Y * 0.9 + 0.05, reduction="none").mean(1)
    )
    single = label_loss(STUDENT, Y, labels="single", smoothing=0.1)
    torch.testing.assert_close(single, F.cross_entropy(STUDENT, Y.argmax(1), label_smoothing=0.1, reduction="none"))


def test_labels_weigh_one_minus_the_weights_of_open_edges():
    first = EdgeTerm(edge(), 0.3, TEACHER)
    second = EdgeTerm(Edge(teacher="dymn", student="vit", temperature=2.0), 0.2, TEACHER.flip(0))
    loss, parts = student_loss(STUDENT, Y, [first, second], labels="single", smoothing=0.0)
    expected = (
        0.5 * label_loss(STUDENT, Y, labels="single")
        + 0.3 * kd_loss(STUDENT, TEACHER, first.edge, labels="single")
        + 0.2 * kd_loss(STUDENT, TEACHER.flip(0), second.edge, labels="single")
    ).mean()
    torch.testing.assert_close(loss, expected)
    assert parts["cnn-to-vit/weight"].item() == pytest.approx(0.3)
    without_edges, _ = student_loss(STUDENT, Y, [], labels="single", smoothing=0.0)
    torch.testing.assert_close(without_edges, F.cross_entropy(STUDENT, Y.argmax(1)))


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_better_on_clip_gate_is_open_where_the_teacher_has_the_lower_loss(labels):
    gated = edge(gate="better_on_clip")
    student = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert open_gate(gated, student, teacher, y, labels=labels).tolist() == [1.0, 0.0, 0.0]  # the tie is closed
    loss, parts = student_loss(student, y, [EdgeTerm(gated, 0.5, teacher)], labels=labels, smoothing=0.0)
    label = label_loss(student, y, labels=labels)
    kd = kd_loss(student, teacher, gated, labels=labels)
    torch.testing.assert_close(loss, (0.5 * label[0] + 0.5 * kd[0] + label[1] + label[2]) / 3)
    assert parts["cnn-to-vit/weight"].item() == pytest.approx(0.5 / 3)


def test_switokd_closes_where_the_teacher_is_far_behind():
    # the true tag is the first; the leader's probabilities are (.5, .5, 0), so its error is 1
    leader = torch.tensor([[0.5, 0.5, 1e-9]]).repeat(3, 1).log()
    lagging = torch.tensor([[0.2, 1e-9, 0.8], [0.3, 0.7, 1e-9], [0.9, 0.1, 1e-9]]).log()
    y = torch.tensor([[1.0, 0.0, 0.0]]).repeat(3, 1)
    # gap 1.6 > delta 1.6 - exp(-1/2.6) = 0.92: closed; gap 0.4 < 1.4 - exp(-1/2.4) = 0.74: open; the third leads: open
    assert open_gate(edge(gate="switokd"), leader, lagging, y, labels="single").tolist() == [0.0, 1.0, 1.0]


def test_logits_of_a_shuffled_teacher_are_rolled_by_one_clip():
    """In the loss and in what is measured of the edge: both read the term."""
    term = edge_term(edge(shuffled=True), 0.5, TEACHER)
    assert torch.equal(term.teacher_BC, TEACHER.roll(1, 0))
    assert torch.equal(edge_term(edge(), 0.5, TEACHER).teacher_BC, TEACHER)
    values = shard_metrics("vit", torch.zeros(()), {}, TEACHER.roll(1, 0), [term], labels="single")
    assert values["cnn-to-vit/agreement"] == 1.0


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_teacher_may_exclude_a_tag(labels):
    """A logit of -inf is a probability of 0; 0 ln 0 is 0 in loss and gradient."""
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone()
    teacher[0, 1] = -math.inf
    almost = teacher.clone()
    almost[0, 1] = -100.0
    loss_B = kd_loss(student, teacher, edge(), labels=labels)
    torch.testing.assert_close(loss_B, kd_loss(student, almost, edge(), labels=labels))
    loss_B.sum().backward()
    assert student.grad.isfinite().all()


def test_a_label_counts_by_its_known_share():
    """A mixture of a known label (weight 0.05) and an unknown one adds 0.05 times the loss of the known one."""
    y, known = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.05, 1.0, 0.0]])
    losses = F.binary_cross_entropy_with_logits(STUDENT[:1], y, reduction="none")[0]
    loss = label_loss(STUDENT[:1], y, labels="multi", known_BC=known)
    torch.testing.assert_close(loss, ((0.05 * losses[0] + losses[1]) / 3).unsqueeze(0))
