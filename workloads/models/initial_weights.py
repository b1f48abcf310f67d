"""Initial weights from a file or a published tagger: checks that they belong to the recipe's network and front end.

Names and shapes of tensors give a network's sizes (`models/fit.py`). What they do not give (strides, heads, pooling,
front end) is compared with the state saved beside a published tagger. The weights of a bare file come without that
state and are not checked further.
"""

import json
from dataclasses import asdict
from typing import Any

from torch import Tensor

from workloads.config.architectures import Arch
from workloads.config.controls import random_key
from workloads.config.recipe import PRETRAINED, Model, Recipe, restore
from workloads.models.pretrained import read_pretrained
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime import checkpoint
from workloads.runtime.json_files import TaggerState, require_shape
from workloads.runtime.opener import Opener

# the temperature is in the weights
TRAINING_ONLY = ("dropout", "drop_path", "bn_momentum", "cooled_after", "freeze_features", "temperature")


def build_initial_tagger(recipe: Recipe, name: str, *, tags: tuple[str, ...], files: Opener) -> Tagger:
    """A model of the recipe with its initial weights, which depend only on the run's seed, its name and `init`.

    A control has those of its student.
    """
    model = recipe.models[name]
    try:
        tagger = build_tagger(
            model,
            name=random_key(recipe, name),
            tags=tags,
            labels=recipe.data.labels,
            clip_seconds=recipe.data.clip_seconds,
            clip_rate=recipe.rate,
            seed=recipe.train.seed,
        )
    except ValueError as mistake:
        raise ValueError(f"models.{name}: {mistake}") from None
    if model.init:
        load_initial_weights(tagger, name, files)
    return tagger


def load_initial_weights(tagger: Tagger, name: str, files: Opener) -> None:
    """Load the weights at the model's `init` into its tagger, with the state saved beside them (`initial_checkpoint`).

    Raises ValueError where they cannot be read, or belong to another network or another front end.
    """
    model = tagger.model
    weights, saved = _read(model.init, files)
    if saved:
        require_shape(saved, f"models.{name}.init = {model.init!r}: state.json", TaggerState)
        saved_model = restore(Model, saved["model"])
        _require_equal(name, model.init, saved_model.front_end.kind, model.front_end.kind, place="front_end.kind")
        for key, value in _network_settings(saved_model.arch).items():
            _require_equal(name, model.init, value, _network_settings(model.arch).get(key), place=f"arch.{key}")
    try:
        tagger.load_initial(weights, tuple(saved["tags"]) if saved else None)
    except ValueError as error:
        hint = "" if saved else f"; {checkpoint.IMPORT_FIRST}"
        raise ValueError(f"models.{name}.init = {model.init!r}: {error}{hint}") from None
    _require_temperature(name, model, weights)
    tagger.initial_checkpoint = saved


def _read(init: str, files: Opener) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights at an `init` and the state saved beside them, empty where there is none."""
    return (read_pretrained(init), {}) if init.startswith(PRETRAINED) else checkpoint.read_weights(files, init)


def require_ready_to_teach(tagger: Tagger, name: str) -> None:
    """Check a model that never trains in this run: ValueError where it is not what its weights were trained as.

    A model that trains may start with another head, another normalisation or clips of another length.
    """
    model, saved = tagger.model, tagger.initial_checkpoint
    if tagger.newly_initialised:
        raise ValueError(
            f"models.{name}.init = {model.init!r}: its head is for other tags than the data's, and {name} never trains "
            "in this schedule; give it weights for these tags, or train it first"
        )
    if not saved:
        return
    _require_equal(name, model.init, saved["labels"], tagger.labels, place="labels", section="data")
    if tagger.backbone.has_positions and not model.front_end.frames:  # they would be cropped or interpolated
        _require_equal(
            name, model.init, saved["clip_seconds"], tagger.clip_seconds, place="clip_seconds", section="data"
        )
    saved_front_end = restore(Model, saved["model"]).front_end
    mean, std = tagger.front_end.mean_and_std(saved_front_end)
    _require_equal(name, model.init, mean, tagger.mean, place="front_end.mean")
    _require_equal(name, model.init, std, tagger.std, place="front_end.std")
    _require_equal(name, model.init, saved_front_end.frames, model.front_end.frames, place="front_end.frames")


def _network_settings(arch: Arch) -> dict[str, Any]:
    """The architecture's settings, without those that only concern training; as JSON values."""
    values = json.loads(json.dumps(asdict(arch)))
    return {key: value for key, value in values.items() if key not in TRAINING_ONLY}


def _require_equal(name: str, init: str, saved: Any, value: Any, *, place: str, section: str = "") -> None:
    """ValueError where a value of the model, or of another `section` of the recipe, is not that of the weights."""
    if saved != value:
        expected = json.dumps(saved)
        raise ValueError(
            f"models.{name}.init = {init!r}: its weights have {place} = {expected}, the recipe has "
            f"{json.dumps(value)}; set {section or f'models.{name}'}.{place} = {expected}, or start from other weights"
        )


def _require_temperature(name: str, model: Model, weights: dict[str, Tensor]) -> None:
    """Trained weights of DyMN hold a lowered temperature; ValueError where the schedule would raise it again."""
    saved = next((float(tensor) for key, tensor in weights.items() if key.split(".")[-1] == "temperature"), None)
    if saved is not None:
        _require_equal(name, model.init, saved, getattr(model.arch, "temperature", saved), place="arch.temperature")
