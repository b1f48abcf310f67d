"""Unknown labels: read from a manifest, left out of losses and scores, and mixed with known ones."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

from workloads.config.data import Data
from workloads.config.edge import Edge
from workloads.config.recipe import Augment, Recipe
from workloads.data.augment import draw_view
from workloads.data.batches import Batches, mix_labels
from workloads.data.clips import Dataset
from workloads.data.manifest import read_dataset
from workloads.data.shard import Mixture
from workloads.distill.edges import EdgeTerm, kd_loss, label_loss, open_gate, student_loss
from workloads.evaluate import metrics
from workloads.run import Run
from workloads.runtime.event_log import read_event_log
from workloads.runtime.opener import LocalFiles
from workloads.train import loop

NAN = math.nan
TAGS = ("drum", "flute", "viola")


def read_manifest(folder: Path, text: str, *, labels: str = "multi") -> Dataset:
    (folder / "clips.csv").write_text(text)
    data = Data(format="manifest", root=str(folder), manifest=str(folder / "clips.csv"), labels=labels)
    return read_dataset(data, LocalFiles())


def test_a_tag_that_is_neither_present_nor_absent_is_unknown(tmp_path: Path) -> None:
    rows = "a,a.wav,drum;viola,flute\nb,b.wav,flute,\nc,c.wav,,drum;flute;viola\nd,d.wav,,\n"
    dataset = read_manifest(tmp_path, "clip_id,path,tags,absent\n" + rows)
    assert dataset.tags == TAGS
    expected = np.array([[1, 0, 1], [NAN, 1, NAN], [0, 0, 0], [NAN, NAN, NAN]], np.float32)
    np.testing.assert_array_equal(dataset.targets(dataset.clips), expected)
    whole = read_manifest(tmp_path, "clip_id,path,tags\na,a.wav,drum;viola\nb,b.wav,flute\n")
    part = read_manifest(tmp_path, "clip_id,path,tags,absent\na,a.wav,drum;viola,flute\nb,b.wav,flute,\n")
    assert whole.fingerprint() != part.fingerprint(), "some labels are unknown, so it is another data set"


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("a,a.wav,drum,flute\n", "multi", "absent names 'flute', which no clip has as a tag; the tags are drum"),
        ("a,a.wav,drum,drum\n", "multi", "row 1: 'drum' is among its tags and among the absent ones"),
        ("a,a.wav,drum,\n", "single", "row 1: column absent is for several tags a clip"),
    ],
)
def test_mistakes_in_absent_tags_name_the_fix(tmp_path: Path, text: str, labels: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path, "clip_id,path,tags,absent\n" + text, labels=labels)


def test_an_unknown_label_adds_nothing_to_loss_and_gradient() -> None:
    logits_BC = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -0.3]], requires_grad=True)
    loss_B = label_loss(logits_BC, torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN]]), labels="multi")
    known = bce(logits_BC[0, [0, 2]], torch.tensor([1.0, 0.0]), reduction="sum")
    torch.testing.assert_close(loss_B, torch.stack([known / 3, torch.zeros(())]))  # over all tags, as EfficientAT does
    loss_B.sum().backward()
    assert logits_BC.grad is not None
    sigmoid = logits_BC.detach().sigmoid()
    expected = torch.tensor([[sigmoid[0, 0] - 1, 0.0, sigmoid[0, 2]], [0.0, 0.0, 0.0]]) / 3
    torch.testing.assert_close(logits_BC.grad, expected)


@pytest.mark.parametrize("gate", ["better_on_clip", "switokd"])
def test_gates_use_known_labels_only(gate: str) -> None:
    edge = Edge(teacher="cnn", student="vit", gate=gate)
    student, teacher = torch.tensor([[0.5, -2.0, 0.1]]), torch.tensor([[2.0, 2.0, -0.4]])
    both = [(student, teacher), (teacher, student)]
    with_unknown = [open_gate(edge, a, b, torch.tensor([[1.0, 0.0, NAN]]), labels="multi").item() for a, b in both]
    known = [open_gate(edge, a[:, :2], b[:, :2], torch.tensor([[1.0, 0.0]]), labels="multi").item() for a, b in both]
    assert with_unknown == known
    assert set(known) == {0.0, 1.0}, "the gate depends on the labels"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_unlabelled_clip_learns_from_its_teacher_alone(smoothing: float) -> None:
    """With one tag a clip: no label loss, no gradient of it, and the loss is a mean over all clips as before."""
    logits_BC = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -0.3]], requires_grad=True)
    y_BC = torch.tensor([[1.0, 0.0, 0.0], [NAN, NAN, NAN]])
    loss_B = label_loss(logits_BC, y_BC, labels="single", smoothing=smoothing)
    labelled = cross_entropy(logits_BC[:1], torch.tensor([0]), label_smoothing=smoothing)
    torch.testing.assert_close(loss_B, torch.stack([labelled, torch.zeros(())]))
    untaught, parts = student_loss(logits_BC, y_BC, [], labels="single", smoothing=smoothing)
    torch.testing.assert_close(untaught, labelled / 2)
    torch.testing.assert_close(parts["label_loss"], labelled.detach() / 2)
    untaught.backward()
    assert logits_BC.grad is not None
    assert logits_BC.grad[1].tolist() == [0.0, 0.0, 0.0]
    teacher_BC = torch.tensor([[1.0, 0.1, -2.0], [-0.5, 0.4, 0.9]])
    term = EdgeTerm(Edge(teacher="cnn", student="vit"), 0.3, teacher_BC)
    taught, _ = student_loss(logits_BC, y_BC, [term], labels="single", smoothing=smoothing)
    kd_B = kd_loss(logits_BC, teacher_BC, term.edge, labels="single")
    torch.testing.assert_close(taught, (0.7 * labelled + 0.3 * kd_B.sum()) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixture_with_an_unlabelled_clip_counts_by_the_weight_of_the_labelled_one(smoothing: float) -> None:
    """Smoothed targets too: nothing of them falls to the unknown share."""
    logits_BC = torch.tensor([[0.3, -1.0, 2.0], [0.3, -1.0, 2.0]])
    y_BC = torch.tensor([[NAN, NAN, NAN], [0.0, 1.0, 0.0]])
    mixture = Mixture(torch.tensor([0.25, 0.6]), torch.tensor([1, 0]))
    mixed_BC, known_BC = mix_labels(y_BC, mixture)
    assert known_BC.tolist() == [[0.75] * 3, [pytest.approx(0.6)] * 3]
    loss_B = label_loss(logits_BC, mixed_BC, labels="single", smoothing=smoothing, known_BC=known_BC)
    labelled = cross_entropy(logits_BC[:1], torch.tensor([1]), label_smoothing=smoothing)
    torch.testing.assert_close(loss_B, torch.stack([0.75 * labelled, 0.6 * labelled]))


@pytest.mark.parametrize("labels", ["single", "multi"])
@pytest.mark.parametrize("gate", ["always", "better_on_clip", "switokd"])
def test_gates_are_open_where_nothing_is_known(gate: str, labels: str) -> None:
    """The student is better on the first clip, so its gate is closed; of the second nothing says so."""
    edge = Edge(teacher="cnn", student="vit", gate=gate)
    student, teacher = torch.tensor([[0.0, 0.0, -8.0]]).repeat(2, 1), torch.tensor([[-1.4, -8.0, 1.4]]).repeat(2, 1)
    y_BC = torch.tensor([[1.0, 0.0, 0.0], [NAN, NAN, NAN]])
    assert open_gate(edge, student, teacher, y_BC, labels=labels).tolist() == [float(gate == "always"), 1.0]


def test_scores_count_known_labels_only() -> None:
    """Equal to scikit-learn's scores with a weight of 0 for unknown labels, as EfficientAT scores OpenMIC."""
    generator = torch.Generator().manual_seed(0)
    logits_NC = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    true_NC = (torch.rand(40, 4, generator=generator) < 0.4).double()
    known_NC = torch.rand(40, 4, generator=generator) < 0.5
    scores = metrics.score(logits_NC, true_NC.where(known_NC, torch.tensor(NAN)), "multi")
    columns = [(true_NC[:, tag], logits_NC[:, tag], known_NC[:, tag]) for tag in range(4)]
    precisions = [average_precision_score(y, z, sample_weight=w) for y, z, w in columns]
    assert scores["mAP"] == pytest.approx(np.mean(precisions))
    assert scores["auc"] == pytest.approx(np.mean([roc_auc_score(y, z, sample_weight=w) for y, z, w in columns]))
    assert scores["log_loss"] == pytest.approx(bce(logits_NC[known_NC], true_NC[known_NC]).item())
    per_tag = metrics.per_tag(logits_NC, true_NC.where(known_NC, torch.tensor(NAN)), ("a", "b", "c", "d"), "multi")
    assert list(per_tag.values()) == pytest.approx(precisions)
    matrix_CC = metrics.cooccurrence(logits_NC, true_NC.where(known_NC, torch.tensor(NAN)))
    has_a = known_NC[:, 0] & (true_NC[:, 0] == 1)
    torch.testing.assert_close(matrix_CC[0], logits_NC.sigmoid()[has_a].mean(0))


@pytest.fixture
def sounds(tmp_path: Path, tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe on forty clips of noise; `rows` gives the tags and absent tags of a clip by its number.

    The clips that `other` names are other noise.
    """

    def make(
        rows: Callable[[int], str],
        *settings: str,
        header: str = "tags,absent",
        other: Callable[[int], bool] = lambda number: False,
    ) -> Recipe:
        folder = tmp_path / f"sounds{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        lines = [f"clip_id,path,fold,{header}"]
        for number in range(40):
            noise = np.random.default_rng([number, other(number)])
            soundfile.write(folder / f"{number}.wav", 0.1 * noise.standard_normal(16_000), 16_000)
            lines.append(f"c{number:02},{number}.wav,{1 + number % 5},{rows(number)}")
        manifest = folder / "clips.csv"
        manifest.write_text("\n".join(lines) + "\n")
        sets = ["data.format=manifest", f"data.root={folder}", f"data.manifest={manifest}", "data.val_share=0.25"]
        plan = ("schedule.burn_in=2", "schedule.period=2", "schedule.turns=2")
        return tiny("demo", *sets, *plan, f"data.cache={folder / 'cache'}", *settings)

    return make


def one_of_three(number: int) -> tuple[str, list[str]]:
    return TAGS[number % 3], [tag for tag in TAGS if tag != TAGS[number % 3]]


def train(run: Run) -> dict[str, str]:
    assert loop(run) == "done"
    (result,) = (record for record in read_event_log(run.history.path) if record["kind"] == "result")
    return {name: row["weights_sha256"] for name, row in result["models"].items()}


def test_a_run_trains_on_known_labels_and_naming_all_absent_tags_changes_nothing(
    sounds: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    def all_known(number: int) -> str:
        tag, others = one_of_three(number)
        return f"{tag},{';'.join(others)}"

    implicit = train(start(sounds(lambda number: one_of_three(number)[0], header="tags")))
    explicit = train(start(sounds(all_known)))
    partly_known = train(start(sounds(lambda number: f"{one_of_three(number)[0]},{one_of_three(number)[1][0]}")))
    assert explicit == implicit, "bit for bit"
    assert all(partly_known[name] != implicit[name] for name in implicit)


def test_unlabelled_clips_change_a_student_only_through_its_edges(
    sounds: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    """The vit, whose clips do not see each other: bit for bit the same whatever these clips sound like, if untaught."""

    def is_unlabelled(number: int) -> bool:
        return number % 5 in (3, 4)

    def cells(number: int) -> str:
        return ",no" if is_unlabelled(number) else f"{TAGS[number % 3]},"

    def weights(*settings: str, other: Callable[[int], bool] = lambda number: False) -> str:
        run = start(sounds(cells, "data.labels=single", *settings, header="tags,labelled", other=other))
        assert sum(clip.labelled for clip in run.prepared.splits.train) == 12
        assert len(run.prepared.splits.train) == 28
        return train(run)["vit"]

    assert weights("edges=[]") == weights("edges=[]", other=is_unlabelled)
    assert weights() != weights(other=is_unlabelled)


def test_a_student_learns_what_its_teacher_says_of_unlabelled_clips(
    tiny: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    """The edge alone teaches it (weight 1), on clips of which a tenth is labelled."""
    plan = ("schedule.teacher_steps=8", "schedule.steps=40", "schedule.ramp=0", "edges.0.weight=1.0")
    run = start(tiny("one-way", *plan, "data.labelled_share=0.1", "models.vit.optimizer.lr=3e-3"))
    train(run)
    values = [record["values"] for record in read_event_log(run.history.path) if record["kind"] == "metrics"]
    kd = [step["cnn-to-vit/kd_loss"] for step in values if "cnn-to-vit/kd_loss" in step]
    assert len(kd) == 40
    assert sum(kd[-8:]) < 0.5 * sum(kd[:8])


def test_mixed_labels_are_means_of_known_labels_and_count_by_their_known_share(
    sounds: Callable[..., Recipe], start: Callable[..., Run]
) -> None:
    recipe = sounds(lambda number: f"{one_of_three(number)[0]},{one_of_three(number)[1][0]}" if number % 2 else ",")
    prepared = start(recipe).prepared
    mixed = replace(recipe, augment=Augment(mixup=1.0))
    batches = Batches(prepared.splits.train, prepared.dataset, prepared.cache, mixed)
    plain = Batches(prepared.splits.train, prepared.dataset, prepared.cache, recipe)
    shard, before = batches.shard(0, 0), plain.shard(0, 0).y_BC
    kinds = set()
    assert shard.mixture is not None
    for row, clip_id in enumerate(shard.clip_ids):
        view = draw_view(mixed.augment, clip_id, 0)
        partner = int(shard.mixture.partner_B[row])
        for tag in range(3):
            own, other, result = before[row, tag].item(), before[partner, tag].item(), shard.y_BC[row, tag].item()
            kinds.add((math.isnan(own), math.isnan(other)))
            share = view.mix_weight * (not math.isnan(own)) + (1 - view.mix_weight) * (not math.isnan(other))
            assert shard.known_BC[row, tag].item() == pytest.approx(share)
            if math.isnan(own) and math.isnan(other):
                assert math.isnan(result)
            elif math.isnan(own) or math.isnan(other):
                assert result == (other if math.isnan(own) else own)
            else:
                assert result == pytest.approx(view.mix_weight * own + (1 - view.mix_weight) * other)
    assert len(kinds) == 4, "every case occurred"
