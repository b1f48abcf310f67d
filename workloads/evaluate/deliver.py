"""What a run delivers: each model's averaged weights as a tagger of its own, scored once on validation and test."""

import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.data.prepare import PreparedData
from workloads.distill.pool import ModelPool
from workloads.evaluate import metrics
from workloads.evaluate.predict import predict_clips
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.session import Session


def deliver_models(
    recipe: Recipe, pool: ModelPool, prepared: PreparedData, session: Session
) -> dict[str, dict[str, Any]]:
    """Score and publish every model; returns the result table's rows by name.

    The hash covers the last trained weights, also where an average is what is delivered. The test fold is read here
    and nowhere else.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in recipe.models:
        trained = pool.train_state(name)
        digest = checkpoint.weights_digest(trained.tagger.state_dict())
        trained.tagger.load_state_dict(trained.average.delivered(trained.tagger))
        tagger = trained.tagger.eval()
        row: dict[str, Any] = {
            "params": tagger.num_parameters,
            "steps_taught": pool.taught[name],
            "steps_learned": trained.own_step,
            "steps_skipped": trained.skipped,
        }
        labels = recipe.data.labels
        row["test"] = {}
        parts = {"val": prepared.splits.val} | ({"test": prepared.splits.test} if recipe.train.score_test else {})
        for part, clips in parts.items():
            logits_NC, y_NC = predict_clips(tagger, clips, prepared, session)
            row[part] = metrics.score(logits_NC, y_NC, labels)
        row["per_tag"] = metrics.per_tag(logits_NC, y_NC, prepared.dataset.tags, labels)
        matrix, compare = (
            ("confusion", metrics.confusion) if labels == "single" else ("cooccurrence", metrics.cooccurrence)
        )
        row[matrix] = _numbers(compare(logits_NC, y_NC))
        row["weights_sha256"] = digest
        if session.rank == 0:
            state = _identity(name, recipe, prepared)
            if trained.own_step:
                state |= _learned(recipe, prepared, tagger) | {part: row[part] for part in ("val", "test")}
            else:
                state = tagger.initial_checkpoint | state  # it is what it was, and learned from none of these clips
            folder = checkpoint.write(
                session.work_dir / "models" / name, tensors={"weights": tagger.state_dict()}, state=state
            )
            row["checkpoint"] = session.deliver(folder)
        rows[name] = row
        pool.release(name)
    return rows


def _identity(name: str, recipe: Recipe, prepared: PreparedData) -> dict[str, Any]:
    """What a tagger is."""
    return {
        "kind": "tagger",
        "name": name,
        "model": asdict(recipe.models[name]),
        "tags": list(prepared.dataset.tags),
        "labels": recipe.data.labels,
        "clip_seconds": recipe.data.clip_seconds,
        "clip_rate": recipe.rate,
    }


def _learned(recipe: Recipe, prepared: PreparedData, tagger: Tagger) -> dict[str, Any]:
    """What a tagger learned from, and whose weights were the first: their licence goes on holding, from run to run."""
    data = {
        "format": recipe.data.format,
        "fingerprint": prepared.dataset.fingerprint(),
        "test_fold": recipe.data.test_fold,
        "clips": {part: len(getattr(prepared.splits, part)) for part in ("train", "val", "test")},
    }
    first = tagger.initial_checkpoint.get("origin") or tagger.initial_checkpoint.get("first_weights")
    return {"recipe": recipe.name, "data": data} | ({"first_weights": first} if first else {})


def _numbers(matrix_CC: Tensor) -> list[list[float | None]]:
    """A matrix for JSON, which knows no NaN: None where a tag has no clips."""
    return [[None if math.isnan(value) else value for value in row] for row in matrix_CC.tolist()]
