"""First weights from elsewhere: are they of the network that the recipe builds, and do they hear what it hears?

Names and shapes tell a network's sizes (`models/fit.py`). What they do not tell (strides, heads, pooling, front end) a
published tagger's own words do. Weights of a bare file come without words, and are taken as they are.
"""

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from workloads.config.architectures import AST, Arch, ViT
from workloads.config.recipe import Model, Recipe, restore
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime import checkpoint
from workloads.runtime.opener import Opener

LEARNING_ONLY = ("dropout", "drop_path", "bn_momentum", "cooled_after", "temperature")  # the last one is in the weights


def build_initial_tagger(recipe: Recipe, name: str, *, tags: tuple[str, ...], files: Opener) -> Tagger:
    """A model of the recipe with its first weights, which depend on the run's seed, its name and `init` only."""
    model = recipe.models[name]
    tagger = build_tagger(
        model,
        name=name,
        tags=tags,
        labels=recipe.data.labels,
        clip_seconds=recipe.data.clip_seconds,
        clip_rate=recipe.rate,
        seed=recipe.train.seed,
    )
    if model.init:
        load_initial(tagger, name, files)
    return tagger


def load_initial(tagger: Tagger, name: str, files: Opener) -> None:
    """Load the weights at the model's `init` into its tagger, which keeps what is known of them (`began_as`).

    Raises ValueError where they cannot be read, or belong to another network or another front end.
    """
    model = tagger.model
    weights, known = checkpoint.read_weights(files, model.init)
    if known:
        was = restore(Model, known["model"])
        _require(name, model.init, was.front_end.kind, model.front_end.kind, place="front_end.kind")
        for key, value in _shape(was.arch).items():
            _require(name, model.init, value, _shape(model.arch).get(key), place=f"arch.{key}")
    tagger.load_initial(weights, tuple(known["tags"]) if known else None)
    _require_temperature(name, model, weights)
    tagger.began_as = known


def require_ready(tagger: Tagger, name: str) -> None:
    """ValueError for a model that never learns and is not what its weights were: it would teach what it does not know.

    A model that learns may begin with another head, on other statistics or with clips of another length.
    """
    model, known = tagger.model, tagger.began_as
    if tagger.started_afresh:
        raise ValueError(
            f"models.{name}.init = {model.init!r}: its head tells other tags apart than the data's, and {name} never "
            "learns them; give it weights for these tags, or let it learn first"
        )
    if not known:
        return
    _require(name, model.init, known["labels"], tagger.labels, place="labels", of="data")
    if isinstance(model.arch, ViT | AST) and not model.front_end.frames:  # positions would be cut or stretched
        _require(name, model.init, known["clip_seconds"], tagger.clip_seconds, place="clip_seconds", of="data")
    was = restore(Model, known["model"]).front_end
    mean = tagger.front_end.mean if was.mean is None else was.mean
    std = tagger.front_end.std if was.std is None else was.std
    _require(name, model.init, mean, tagger.mean, place="front_end.mean")
    _require(name, model.init, std, tagger.std, place="front_end.std")
    _require(name, model.init, was.frames, model.front_end.frames, place="front_end.frames")


def _shape(arch: Arch) -> dict[str, Any]:
    """What a network is, less how it learns; as JSON has it."""
    values = json.loads(json.dumps(asdict(arch)))
    return {key: value for key, value in values.items() if key not in LEARNING_ONLY}


def _require(name: str, init: str, was: Any, now: Any, *, place: str, of: str = "") -> None:
    """ValueError where a value of the model, or `of` another part of the recipe, is not that of the weights."""
    if was != now:
        shown = json.dumps(was)
        raise ValueError(
            f"models.{name}.init = {init!r}: its weights are of {place} = {shown}, and the recipe says "
            f"{json.dumps(now)}; set {of or f'models.{name}'}.{place} = {shown}, or start from other weights"
        )


def _require_temperature(name: str, model: Model, weights: dict[str, Tensor]) -> None:
    """DyMN's choice of kernels has cooled in weights that are trained; its schedule would heat it again."""
    held = next((float(tensor) for key, tensor in weights.items() if key.split(".")[-1] == "temperature"), None)
    if held is not None:
        _require(name, model.init, held, getattr(model.arch, "temperature", held), place="arch.temperature")
