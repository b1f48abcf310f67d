"""What a server of frozen teachers does, in whatever process it runs: it reads shards and asks the teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.data.batches import Batches
from workloads.distill.preflight import prepare_run
from workloads.distill.schedule import plan_phases
from workloads.distill.service import ServedModel, ServedOutputs
from workloads.distill.sources import FrozenTeacher, TeacherKey
from workloads.models.initial_weights import build_initial_tagger
from workloads.models.tagger import Tagger
from workloads.runtime.cpu import use_cpu
from workloads.runtime.opener import Opener
from workloads.runtime.placement import WorkerGroup
from workloads.runtime.precision import set_tf32, training_autocast
from workloads.runtime.tensor_files import parse_safetensors


class TeacherServer:
    """The data of a run and the teachers of its current phase. Calls come one after the other.

    Raises ValueError where the data cannot be used, as the run itself would.
    """

    def __init__(self, recipe: Recipe, device: torch.device, files: Opener) -> None:
        use_cpu(recipe.train.threads)
        if device.type == "cuda":
            set_tf32(recipe.train.tf32)
        prepared, stores, _ = prepare_run(recipe, plan_phases(recipe), WorkerGroup(), device, files)
        self._recipe, self._device, self._files, self._tags = recipe, device, files, prepared.dataset.tags
        self._batches = Batches(
            prepared.splits.train, prepared.dataset, prepared.cache, recipe, stores.views, stores.mixtures
        )
        self._teachers: dict[TeacherKey, FrozenTeacher] = {}
        self.fingerprint = prepared.dataset.fingerprint()

    def teach(self, models: Sequence[ServedModel]) -> None:
        """Load the teachers of a phase; those of the phase before are forgotten."""
        self._teachers = {}
        for model in models:
            tagger = self._tagger(model)
            self._teachers[model.key] = FrozenTeacher(
                lambda tagger=tagger: tagger,  # type: ignore[misc]
                model.key.view,
                lambda: training_autocast(self._recipe.train, self._device),
                model.needs,
            )

    def _tagger(self, model: ServedModel) -> Tagger:
        name = model.key.teacher
        tagger = build_initial_tagger(self._recipe, name, tags=self._tags, files=self._files)
        tagger.load_own(parse_safetensors(model.weights, name), f"weights of {name}")
        return tagger.to(self._device).eval()

    def answer(self, step: int, index: int) -> ServedOutputs:
        """What the teachers say of a shard, with the shard's keys."""
        clean = any(key.view == "clean" for key in self._teachers)
        shard = self._batches.shard(step, index, with_clean_view=clean, device=self._device)
        outputs: dict[TeacherKey, Mapping[str, Tensor]] = {}
        for key, teacher in self._teachers.items():
            own: Mapping[str, Any] = teacher.outputs(shard, {})
            outputs[key] = {kind: tensor.cpu() for kind, tensor in own.items()}
        return ServedOutputs(shard.keys, outputs)
