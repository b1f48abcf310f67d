"""What a student learns beside its own weights so that it can say what an edge carries; no delivered model has it."""

from collections.abc import Mapping

import torch
from torch import nn

from workloads.config.recipe import Recipe
from workloads.distill.output_sizes import OutputSizes
from workloads.distill.stored_teacher import StoredTeacher
from workloads.distill.temporal import build_time_head
from workloads.models.tagger import Tagger, outputs_of_silence
from workloads.runtime.rng import keyed_seed


def build_projections(
    recipe: Recipe,
    name: str,
    tagger: Tagger,
    sizes: OutputSizes,
    stored_teachers: Mapping[str, StoredTeacher],  # by edge key
) -> dict[str, nn.Module]:
    """For each edge that carries embeddings to a model a linear map to its teacher's, and for profiles what gives the
    weights of its steps; by the edge's key.

    First weights depend on the run's seed and the edge only.
    """
    projections: dict[str, nn.Module] = {}
    for edge in recipe.edges:
        if edge.student != name or edge.carries not in ("embedding", "temporal"):
            continue
        if edge.carries == "temporal":
            projections[edge.key] = build_time_head(tagger, edge.key)
            continue
        width = stored_teachers[edge.key].width if edge.store else sizes[edge.teacher].features
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(keyed_seed(recipe.train.seed, edge.key, "projection"))
            projections[edge.key] = nn.Linear(outputs_of_silence(tagger).embedding_BD.shape[1], width)
    return projections
