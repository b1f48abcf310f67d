"""Edges that carry embeddings: the student's embedding, projected, comes closer to the teacher's, and labels lose
nothing."""

import copy
import json

import pytest
import torch
from torch.nn.functional import cosine_similarity

from orchestrator.recipes.loader import load_recipe
from workloads.config.edge import Edge
from workloads.distill.edges import embedding_loss
from workloads.distill.schedule import label_learners, plan_phases
from workloads.run import Run
from workloads.runtime.checkpoint import read_tensors
from workloads.train import advance, loop
from workloads.train_step import train_step

EDGES = (
    "edges=[{teacher='cnn', student='vit', weight=0.5},"
    " {teacher='cnn', student='vit', carries='embedding', loss='cosine', weight=2.0}]"
)
ONE_WAY = "schedule={kind='one_way', teachers=['cnn'], teacher_steps=2, steps=4}"


def values(run: Run) -> list[dict[str, float]]:
    records = (run.session.work_dir / "events.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, records) if record["kind"] == "metrics"]


def trained(run: Run) -> dict[str, torch.Tensor]:
    for _ in advance(run):
        pass
    return {key: tensor.clone() for key, tensor in run.pool.train_state("vit").tensors().items()}


def test_the_losses_of_two_embeddings():
    student_BD = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    teacher_BD = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    torch.testing.assert_close(embedding_loss(student_BD, teacher_BD, loss="cosine"), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(embedding_loss(student_BD, teacher_BD, loss="mse"), torch.tensor([12.5, 2.5]))


def test_gradient_of_student_and_projection(tiny, start):
    """That of (1 - .5) label + .5 KL + 2 (1 - cos) with the teacher's outputs as constants."""
    run = start(tiny("demo", EDGES, ONE_WAY, "models.vit.optimizer.clip_norm=0.0"))
    for _ in advance(run, until=2):
        pass
    sources = run.pool.enter_phase(run.phases[1])
    state = run.pool.states["vit"]
    before, projection = copy.deepcopy(state.tagger), copy.deepcopy(state.projection("cnn-to-vit-embedding"))
    shard = run.batches.shard(run.step, 0)
    teacher = sources["cnn-to-vit-embedding"].outputs(shard, {})
    assert sources["cnn-to-vit"] is sources["cnn-to-vit-embedding"]  # one forward
    found = {}
    for parameters in (state.tagger, state.projections):
        for name, parameter in parameters.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: found.update({name: p.grad.clone()}))
    train_step(run, run.phases[1], sources)
    outputs = before.outputs(shard.mel(before.front_end))
    cosine = cosine_similarity(projection(outputs.embedding_BD), teacher["embedding"], dim=1)
    (2 * (1 - cosine).mean()).backward()
    for name, parameter in projection.named_parameters():
        torch.testing.assert_close(found[f"to_cnn-to-vit-embedding.{name}"], parameter.grad, rtol=1e-4, atol=1e-7)
    head = [name for name, parameter in before.named_parameters() if parameter.grad is None]
    assert head  # the head is behind the embedding, so it learns from logits and labels only
    assert all(found[name].abs().max() > 0 for name, _ in before.named_parameters())


def test_embeddings_come_closer(tiny, start):
    own = ["models.vit.optimizer.lr=1e-2", "schedule={kind='one_way', teachers=['cnn'], teacher_steps=2, steps=40}"]
    run = start(tiny("demo", EDGES, *own))
    trained(run)
    losses = [step["cnn-to-vit-embedding/kd_loss"] for step in values(run) if "cnn-to-vit-embedding/kd_loss" in step]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("schedule", [ONE_WAY, "schedule={kind='mutual', burn_in=1, steps=4}"])
def test_a_resumed_run_has_the_same_bits(schedule, tiny, start):
    recipe = tiny("demo", EDGES, schedule, "train.checkpoint_every=1")
    whole = start(recipe)
    expected = trained(whole)
    stopped = start(recipe)
    for _ in advance(stopped, until=4):
        pass
    resumed = start(recipe, checkpoints_of=stopped)
    assert resumed.step == 4
    found = trained(resumed)
    assert found.keys() == expected.keys()
    assert any(name.startswith("projection.") for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_projection_is_delivered_and_a_control_has_none(tiny, start):
    run = start(tiny("demo", EDGES, ONE_WAY, "compare=true"))
    assert loop(run) == "done"
    assert run.pool.train_state("vit_untaught").projections.keys() == set()
    published = run.session.work_dir.parent / "models"
    (folder,) = [path.parent for path in published.rglob("weights.safetensors") if "vit/" in str(path)]
    assert not [name for name in read_tensors(folder, "weights") if "projection" in name]


def test_weights_of_embeddings_take_nothing_from_labels():
    alone = "edges=[{teacher='cnn', student='vit', carries='embedding', loss='mse', weight=5.0}]"
    recipe = load_recipe("one-way", ["compare=false", alone])
    assert label_learners(plan_phases(recipe)) == ("cnn", "vit")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "kl"}, "loss = 'kl': is for logits; embeddings have 'cosine' or 'mse'"),
        ({"loss": "mse", "temperature": 2.0}, "temperature = 2.0: is for edges that carry logits"),
        ({"loss": "mse", "gate": "switokd"}, "gate = 'switokd': is for edges that carry logits"),
        ({"loss": "mse", "weight": -1.0}, "weight = -1.0: must be 0 or more"),
    ],
)
def test_what_is_no_setting_of_such_an_edge(fields, message):
    with pytest.raises(ValueError, match=message):
        Edge(teacher="cnn", student="vit", carries="embedding", **fields)


def test_an_edge_may_be_called_like_an_attribute(tiny, start):
    edge = "edges=[{teacher='cnn', student='vit', carries='embedding', loss='mse', name='train'}]"
    assert "train/kd_loss" in values_of(start(tiny("demo", edge, ONE_WAY)))


def values_of(run: Run) -> set[str]:
    trained(run)
    return {key for step in values(run) for key in step}
