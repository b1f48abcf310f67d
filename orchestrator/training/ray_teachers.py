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
# How long an answer, or the loading of a phase's teachers, may take, behind the shards that were asked for before: far
# more than any should, and less than workers wait for one another.
ANSWER_S = 900.0


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
        """Raises Unavailable where it does not come in time: Ray Train then starts workers and actors again."""
        outputs: ServedOutputs = _wait_for(
            self.reference, ANSWER_S, "one of the actors of the teachers has not answered"
        )
        return outputs


def _wait_for(references: Any, limit_s: float, what: str) -> Any:
    """What actors return; Unavailable, which begins with `what`, where it takes longer than the limit."""
    try:
        return ray.get(references, timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        raise Unavailable(
            f"{what} within {limit_s:g} s; repeat the command, or give the teachers more actors or other resources "
            "(service.actors, service.resources)"
        ) from None


class RayTeachers:
    """The actors, as `TeacherService` of one worker. All workers make one, and get the same actors."""

    def __init__(self, recipe: Recipe, *, rank: int, gather: Callable[[Any], list[Any]]) -> None:
        self._shards = recipe.train.shards
        self._actors: list[Any] = gather(_start(recipe) if rank == 0 else None)[0]

    def fingerprints(self) -> list[str]:
        """Raises Unavailable where the actors are not there in time."""
        asked = [actor.fingerprint.remote() for actor in self._actors]
        what = f"the cluster has not started the {len(asked)} actors of the teachers"
        found: list[str] = _wait_for(asked, START_S, what)
        return found

    def teach(self, models: Sequence[ServedModel]) -> None:
        """Raises Unavailable where the actors do not load the models in time."""
        shared = ray.put(list(models))  # once for all actors
        asked = [actor.teach.remote(shared) for actor in self._actors]
        _wait_for(asked, ANSWER_S, f"the {len(asked)} actors of the teachers have not loaded the weights of a phase")

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
