"""Frozen teachers in Ray actors with resources of their own, which all workers of a run ask (`placement = "service"`).

Rank 0 starts the actors, and they end with it. Where one dies, the worker that waits for its answer fails: Ray Train
starts the workers again, those start other actors, and the run goes on from its newest checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch

from orchestrator.recipes.loader import parse, resolve
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import Unavailable
from orchestrator.training.worker_resources import teacher_needs
from workloads.config.recipe import Recipe
from workloads.distill.service import ServedModel, ServedOutputs
from workloads.distill.teacher_server import TeacherServer

START_S = 600.0  # how long the actors may take to be placed, and to prepare the data of the run


class TeacherActor:
    """One server of teachers, in a process of its own."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._server = TeacherServer(parse(recipe), device, FsspecFiles())

    def fingerprint(self) -> str:
        return self._server.fingerprint

    def teach(self, models: Sequence[ServedModel]) -> None:
        self._server.teach(models)

    def answer(self, step: int, index: int) -> ServedOutputs:
        return self._server.answer(step, index)


@dataclass(frozen=True)
class RayAnswer:
    """An answer that an actor is to give."""

    reference: Any

    def result(self) -> ServedOutputs:
        outputs: ServedOutputs = ray.get(self.reference)
        return outputs


class RayTeachers:
    """The actors, as `TeacherService` of one worker. All workers make one, and get the same actors."""

    def __init__(self, recipe: Recipe, *, rank: int, gather: Callable[[Any], list[Any]]) -> None:
        self._shards = recipe.train.shards
        self._actors: list[Any] = gather(_start(recipe) if rank == 0 else None)[0]

    def fingerprints(self) -> list[str]:
        """Raises Unavailable where the actors are not there in time."""
        asked = [actor.fingerprint.remote() for actor in self._actors]
        try:
            return ray.get(asked, timeout=START_S)
        except ray.exceptions.GetTimeoutError:
            raise Unavailable(
                f"the cluster has not started the {len(asked)} actors of the teachers within {START_S:.0f} s; repeat "
                "the command, or lower service.actors or service.resources"
            ) from None

    def teach(self, models: Sequence[ServedModel]) -> None:
        shared = ray.put(list(models))  # once for all actors
        ray.get([actor.teach.remote(shared) for actor in self._actors])

    def ask(self, step: int, index: int) -> RayAnswer:
        actor = self._actors[(step * self._shards + index) % len(self._actors)]
        return RayAnswer(actor.answer.remote(step, index))


def _start(recipe: Recipe) -> list[Any]:
    needs = teacher_needs(recipe)
    # DEFAULT: beside the placement group of the workers, not in it
    options: dict[str, Any] = {"scheduling_strategy": "DEFAULT", "num_cpus": needs.resources["CPU"]}
    options |= {"num_gpus": needs.resources.get("GPU", 0)}
    options |= {"memory": needs.resources["memory"]} if "memory" in needs.resources else {}
    options |= (
        {"accelerator_type": recipe.service.resources.accelerator} if recipe.service.resources.accelerator else {}
    )
    options |= {"label_selector": dict(needs.labels)} if needs.labels else {}
    actor_class = ray.remote(TeacherActor).options(**options)
    return [actor_class.remote(resolve(recipe)) for _ in range(recipe.service.actors)]
