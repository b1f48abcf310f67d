"""Learning-rate curves compared with the numbers of the papers' code, and settings that are refused."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from orchestrator.recipes.loader import load_recipe
from workloads.config.recipe import Optimizer
from workloads.distill.train_state import learning_rate

# 200 epochs: warm-up over 8, constant to 80, linear over 95 (reference/efficientat.md section 4)
EFFICIENTAT = load_recipe("efficientat-audioset", ["data.root=x"]).models["student"].optimizer


@pytest.mark.parametrize(
    ("epoch", "share"),
    [
        # The paper sets the rate once per epoch; ours changes at every step. Both are equal at an epoch's first step,
        # except in epoch 0, for which the paper takes the middle of the epoch.
        (0.5, 0.0123),
        (1, 0.0218),
        (2, 0.0601),
        (8, 1.0),
        (80, 1.0),
        (127, 0.5102),
        (174, 0.0204),
        (175, 0.01),
        (199, 0.01),
    ],
)
@pytest.mark.parametrize("per_epoch", [2, 834])
def test_efficientats_curve(epoch: float, share: float, per_epoch: int) -> None:
    rate = learning_rate(EFFICIENTAT, round(epoch * per_epoch), 200 * per_epoch)
    assert rate / 8e-4 == pytest.approx(share, abs=5e-5)


def test_the_exponential_warm_up_begins_above_zero_and_rises() -> None:
    optimizer = replace(EFFICIENTAT, lr=1.0)
    rates = [learning_rate(optimizer, step, 1000) for step in range(41)]
    assert rates[0] == pytest.approx(math.exp(-5))
    assert all(before < after for before, after in pairwise(rates))
    assert rates[40] == 1.0


@pytest.mark.parametrize(
    ("name", "model", "lr", "epochs", "factor", "expected"),
    [  # reference/cmkd.md 2.4; `expected`: epoch (from 0) -> number of decays so far
        ("ast-audioset", "ast", 1e-5, 5, 0.5, {1: 0, 2: 1, 3: 2, 4: 3}),
        ("ast-audioset-balanced", "ast", 5e-5, 25, 0.5, {9: 0, 10: 1, 14: 1, 15: 2, 20: 3, 24: 3}),
        ("ast-esc50", "ast", 1e-5, 25, 0.85, {0: 0, 4: 0, 5: 1, 6: 2, 24: 20}),
        ("psla-fsd50k", "cnn", 5e-4, 40, 0.5, {9: 0, 10: 1, 15: 2, 35: 6, 39: 6}),
    ],
)
@pytest.mark.parametrize("per_epoch", [3, 167, 166_667])
def test_step_decay_happens_at_the_papers_epochs(name, model, lr, epochs, factor, expected, per_epoch) -> None:
    """As torch's MultiStepLR with these epochs as milestones: the rate is constant within an epoch."""
    optimizer = load_recipe(name, ["data.root=x", "data.manifest=x.csv"]).models[model].optimizer
    for epoch, falls in expected.items():
        for step in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            assert learning_rate(optimizer, step, epochs * per_epoch) == pytest.approx(lr * factor**falls, rel=1e-12)


def test_ceds_cosine_ends_at_a_tenth() -> None:
    """Linear warm-up, then a cosine to 0.1 x lr over the rest (reference/ced.md section 7)."""
    optimizer = Optimizer(lr=1e-3, warmup=0.2, floor=0.1)
    assert learning_rate(optimizer, 0, 100) == pytest.approx(1e-3 / 21)
    assert learning_rate(optimizer, 20, 100) == 1e-3
    assert learning_rate(optimizer, 60, 100) == pytest.approx(0.55e-3)  # half way: the mean of both ends
    assert learning_rate(optimizer, 100, 100) == pytest.approx(1e-4)


def test_linear_warm_up_cosine_and_constant_are_exact() -> None:
    for step in range(200):
        warm, curve = (
            learning_rate(Optimizer(lr=3e-3), step, 200),
            3e-3 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 180)),
        )
        assert warm == (3e-3 * (step + 1) / 21 if step < 20 else curve)
        constant = learning_rate(Optimizer(lr=3e-3, decay="constant", warmup=0.0, floor=0.3), step, 200)
        assert constant == 3e-3


@pytest.mark.parametrize("decay", ["cosine", "constant", "step", "linear"])
def test_a_model_that_never_trains_has_a_learning_rate_too(decay: str) -> None:
    """A frozen teacher is built with an optimizer, like any model, but takes no step."""
    optimizer = Optimizer(warmup=0.0, decay=decay, decay_from=0.5, decay_every=0.1)
    assert 0 < learning_rate(optimizer, 0, 0) <= optimizer.lr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": "step", "warmup": 0.0, "decay_from": 0.4}, "decay_every = 0.0: must be a share of the steps above"),
        ({"decay": "step", "decay_every": 0.1}, "decay_from = 0.0: must be a share of the steps from warmup = 0.1 on"),
        ({"decay": "step", "decay_from": 1.0, "decay_every": 0.1}, "decay_from = 1.0"),
        ({"decay": "step", "decay_from": 0.5, "decay_every": 0.1, "decay_factor": 1.0}, "decay_factor = 1.0"),
        ({"decay": "linear", "decay_from": 0.5, "decay_until": 0.5}, "decay_until = 0.5: must be a share of the steps"),
        ({"decay": "linear", "decay_from": 0.5, "decay_until": 1.5}, "decay_until = 1.5"),
        ({"floor": -0.1}, "floor = -0.1: must be a share of lr"),
    ],
)
def test_impossible_curves_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Optimizer(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(("kind", "decayed"), [("adamw", 1 - 0.1 * 0.5), ("adam", 1 - 0.1)])
def test_weight_decay_is_inside_adams_gradient_and_outside_adamws(tiny, start, kind: str, decayed: float) -> None:
    """At a gradient of zero, AdamW shrinks a weight by lr x weight decay. Adam adds the decay to the gradient and
    normalises it, so that it takes a step of lr, whatever the weight decay."""
    settings = [f"models.cnn.optimizer.kind={kind}", "models.cnn.optimizer.weight_decay=0.5"]
    run = start(tiny("demo", *settings, "models.cnn.optimizer.lr=0.1", "models.cnn.optimizer.warmup=0"))
    state = run.pool.train_state("cnn")
    weight = next(state.tagger.parameters())
    with torch.no_grad():
        weight.fill_(1.0)
    weight.grad = torch.zeros_like(weight)
    state.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, decayed), rtol=0, atol=1e-5)
