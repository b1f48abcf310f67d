"""The models of a run: in memory while a phase needs them, offloaded to local disk otherwise.

`ModelPool.enter_phase` is the only place where roles change: which models train, which teach, which are in memory.
A worker has the models of its placement only; rank 0 gets the others' states when it saves. Does not depend on losses
or on the loop.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from workloads.config.controls import begins_as_copy, random_key
from workloads.config.edge import Edge
from workloads.config.recipe import Recipe
from workloads.distill.exchange import Exchange, RemoteTeacher
from workloads.distill.output_sizes import OutputSizes
from workloads.distill.projections import build_projections
from workloads.distill.schedule import Phase, own_steps
from workloads.distill.service import AnswersAhead, ServedModel, ServedTeacher
from workloads.distill.sources import FrozenTeacher, TeacherKey, TeacherSource, TrainingPeer, teacher_key
from workloads.distill.stored_teacher import StoredTeacher
from workloads.distill.train_state import TrainState
from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.event_log import EVENT_LOG
from workloads.runtime.placement import Placement
from workloads.runtime.precision import training_autocast
from workloads.runtime.session import Session


class ModelPool:
    """The training states of the models that the current phase needs, the snapshots that teach in it, and the rest on
    disk. Every worker of a run has its own pool, with the models of its placement."""

    def __init__(
        self,
        recipe: Recipe,
        session: Session,
        placement: Placement,
        phases: tuple[Phase, ...],
        make_tagger: Callable[[str], Tagger],
        stored_teachers: Mapping[str, StoredTeacher] | None = None,  # by edge key
    ) -> None:
        self.states: dict[str, TrainState] = {}  # models in memory
        self.snapshots: dict[str, Tagger] = {}  # copies of teachers, taken when the phase began
        self.steps_taught = dict.fromkeys(recipe.models, 0)  # steps in which the model's outputs taught a student
        self.exchange: Exchange  # with workers that hold other models, in the current phase
        self.answers: AnswersAhead | None = None  # of the servers of frozen teachers, in the current phase
        self._recipe, self._session, self._make_tagger = recipe, session, make_tagger
        self._placement = placement
        self._stored_teachers = stored_teachers or {}
        self._total_steps = own_steps(phases)
        self._offloaded: dict[str, dict[str, Any]] = {}  # model -> its scalars; its tensors are in the folder below
        self._remote_snapshots: set[str] = set()  # of models on other workers; on the disk of rank 0
        self._folder = session.work_dir / "offloaded"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sizes = OutputSizes(make_tagger)

    def enter_phase(self, phase: Phase, *, step: int | None = None) -> dict[str, TeacherSource]:
        """Change roles; returns the teacher source of each edge that has an end on this worker, by the edge's key.

        Offloads the models that the phase does not need, loads those that it needs, sets them to training or eval mode
        and takes the snapshots that its edges ask for. A phase that is resumed in its middle, after `step` steps of the
        run, keeps the snapshots of its checkpoint. With servers of frozen teachers these are not in memory here.
        """
        train, step = self._recipe.train, phase.start if step is None else step
        served = self._recipe.placement == "service"
        needed = list(filter(self._placement.holds, phase.trains if served else phase.needs))
        for name in [name for name in self.states if name not in needed]:
            self._offload(name)
        for name in needed:
            self.train_state(name)
        for name, state in self.states.items():
            state.tagger.train(name in phase.trains)
            state.training_forward.needs = _needs(phase, name, frames=self._recipe.models[name].frame_labels)
        if step <= phase.start:
            teachers = {edge.teacher for edge in phase.edges if edge.source == "snapshot"}
            self.snapshots = {name: self._copy(name) for name in sorted(filter(self._keeps_snapshot, teachers))}
        self.answers = self._serve(phase, step) if served and phase.teachers else None
        self.exchange = Exchange(self._placement, phase, self._sizes, train.shard_size, self._session.device)
        return self._teacher_sources(phase)

    def _keeps_snapshot(self, name: str) -> bool:
        """Whether snapshots of a model are on this worker; with servers on rank 0 alone, which sends and saves them."""
        return self._placement.holds(name) and not (self._recipe.placement == "service" and self._session.rank)

    def _weights(self, name: str, source: str) -> Mapping[str, Tensor]:
        """The state dict with which a model teaches, in memory or not.

        One worker alone asks for it, so no TrainState is made: with DDP, all would have to make it.
        """
        if name in self.states or (source == "snapshot" and name in self.snapshots):
            return self._teacher(name, source)().state_dict()
        if name not in self._offloaded:
            return self._make_tagger(name).state_dict()
        part = "average." if source == "ema" else "model."
        tensors = checkpoint.read_tensors(self._folder, name)
        return {key.removeprefix(part): tensor for key, tensor in tensors.items() if key.startswith(part)}

    def _copy(self, name: str) -> Tagger:
        """A copy of a model as it is now, in eval mode."""
        if name in self.states:
            return copy.deepcopy(self.states[name].tagger).eval()
        tagger = self._make_tagger(name).to(self._session.device)
        tagger.load_own(dict(self._weights(name, "live")), name)
        return tagger.eval()

    def _serve(self, phase: Phase, step: int) -> AnswersAhead:
        """Give the servers the teachers of a phase, and begin to ask for the shards from `step` on; collective."""
        service, train = self._session.teachers, self._recipe.train
        if self._session.rank == 0:
            models = dict.fromkeys(teacher_key(edge) for edge in phase.edges if not edge.store)
            weights = {key: save(_on_cpu(self._weights(key.teacher, key.source))) for key in models}
            service.teach([ServedModel(key, _carried(phase, key), weights[key]) for key in models])
        self._placement.everyone.gather(None)  # nobody asks before
        shards = self._placement.shards(train.shards)
        places = ((number, index) for number in range(step, phase.end) for index in shards)
        return AnswersAhead(service, places, ahead=self._recipe.service.prefetch * len(shards))

    def _teacher_sources(self, phase: Phase) -> dict[str, TeacherSource]:
        shared: dict[TeacherKey, TeacherSource] = {}  # two edges of one teacher share its forward
        sources: dict[str, TeacherSource] = {}
        for edge in phase.edges:
            key = teacher_key(edge)
            if not self._placement.holds(edge.student) and not self._placement.holds(edge.teacher):
                continue
            if edge.store:
                sources[edge.key] = self._stored_teachers[edge.key]
                continue
            if key not in shared:
                if self.answers is not None:
                    shared[key] = ServedTeacher(key, self.answers, self._session.device)
                elif not self._placement.holds(edge.teacher):
                    shared[key] = RemoteTeacher(key, self.exchange)
                elif edge.source == "live" and edge.teacher in phase.trains:
                    shared[key] = TrainingPeer(edge.teacher)
                else:
                    tagger, needs = self._teacher(edge.teacher, edge.source), _carried(phase, key)
                    shared[key] = FrozenTeacher(tagger, edge.view, self.autocast, needs)
            sources[edge.key] = shared[key]
        return sources

    def _teacher(self, name: str, source: str) -> Callable[[], Tagger]:
        """How to get the weights that teach in a step: they are looked up then, since models and averages change."""
        if source == "snapshot":
            return lambda: self.snapshots[name]
        if source == "ema":
            return lambda: self.states[name].evaluation_tagger
        return lambda: self.states[name].tagger

    def train_state(self, name: str) -> TrainState:
        """The training state of a model; builds it, or loads it from disk, if it is not in memory."""
        if name not in self.states:
            tagger = self._make_tagger(name)
            state = TrainState(
                self._recipe.models[name],
                tagger,
                total_steps=self._total_steps[random_key(self._recipe, name)],
                session=self._session,
                group=self._placement.groups[name],
                compiled=self._recipe.train.compile,
                projections=build_projections(self._recipe, name, tagger, self._sizes, self._stored_teachers),
            )
            if name in self._offloaded:
                state.load(checkpoint.read_tensors(self._folder, name), self._offloaded.pop(name))
            elif begins_as_copy(self._recipe, name):
                student = self.train_state(self._recipe.models[name].control_of)
                own = {key: tensor for key, tensor in student.tensors().items() if not key.startswith("projection.")}
                tensors = {key: tensor.detach().clone() for key, tensor in own.items()}
                state.load(tensors, copy.deepcopy(student.scalars()))
            self.states[name] = state
        return self.states[name]

    def teacher_grid(self, edge: Edge, steps: int) -> TimeGrid:
        """Where the steps of what a teacher says in time are, also of one that is not in memory here."""
        if edge.store:
            return self._stored_teachers[edge.key].grid
        name = edge.teacher
        return time_grid(self.states[name].tagger, steps) if name in self.states else self._sizes[name].grid

    def release(self, name: str) -> None:
        """Free the memory of a model that the run no longer needs; nothing of it is kept on disk."""
        del self.states[name]

    def _offload(self, name: str) -> None:
        state = self.states.pop(name)
        save_file(_on_cpu(state.tensors()), self._folder / f"{name}.safetensors")
        self._offloaded[name] = state.scalars()

    def autocast(self) -> torch.autocast:
        """The context of a forward in training and validation: bf16 with `train.precision` = "bf16", else nothing."""
        return training_autocast(self._recipe.train, self._session.device)

    @contextlib.contextmanager
    def gradient_sync(self, names: Sequence[str], *, enabled: bool) -> Iterator[None]:
        """Whether DDP averages the gradients of these models over workers in the backward within this context."""
        with contextlib.ExitStack() as stack:
            for name in names:
                forward = self.states[name].forward
                if isinstance(forward, DistributedDataParallel) and not enabled:
                    stack.enter_context(forward.no_sync())
            yield

    def members(self) -> dict[str, dict[str, Any]]:
        """The scalars of the models that are in memory or on the disk here."""
        return {name: state.scalars() for name, state in self.states.items()} | self._offloaded

    def bring_to_rank_0(self) -> None:
        """Bring what only other workers hold to the disk of rank 0, which saves it; a collective call."""
        for name in self._recipe.models:
            if self._placement.first_holder(name) == 0:
                continue
            own = self._state_of(name) if self._placement.is_first_holder and self._placement.holds(name) else None
            brought = self._placement.bring(name, own)
            if brought is not None:
                scalars, files = brought
                for stem, tensors in files.items():
                    save_file(tensors, self._folder / f"{stem}.safetensors")
                self._offloaded |= {name: scalars} if scalars is not None else {}
                self._remote_snapshots = self._remote_snapshots - {name} | (
                    {name} if _snapshot(name) in files else set()
                )

    def _state_of(self, name: str) -> tuple[dict[str, Any] | None, dict[str, dict[str, Tensor]]]:
        """A model's scalars, None where it was never in memory, and by file its tensors."""
        files: dict[str, dict[str, Tensor]] = {}
        if name in self.states:
            files[name] = self.states[name].tensors()
        elif name in self._offloaded:
            files[name] = checkpoint.read_tensors(self._folder, name)
        if name in self.snapshots:
            files[_snapshot(name)] = self.snapshots[name].state_dict()
        return self.members().get(name), {stem: _on_cpu(tensors) for stem, tensors in files.items()}

    def save(self, folder: Path, state: dict[str, Any], *, history: Path) -> Path:
        """Write all models as one checkpoint, with the loop's `state` and event log; after `bring_to_rank_0`."""
        tensors = {name: state.tensors() for name, state in self.states.items()}
        tensors |= {_snapshot(name): tagger.state_dict() for name, tagger in self.snapshots.items()}
        state = state | {
            "taught": self.steps_taught,
            "members": self.members(),
            "snapshots": sorted({*self.snapshots, *self._remote_snapshots}),
        }
        on_disk = [*self._offloaded, *map(_snapshot, self._remote_snapshots)]
        files = {f"{stem}.safetensors": self._folder / f"{stem}.safetensors" for stem in on_disk}
        return checkpoint.write(folder, tensors=tensors, state=state, files={EVENT_LOG: history, **files})

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restore the models of a checkpoint: all start offloaded, until a phase needs them."""
        members, snapshots = dict(state["members"]), list(state["snapshots"])
        if strange := {*members, *snapshots, *state["taught"]} - {*self._recipe.models}:
            raise ValueError(f"checkpoint {folder.name}: holds {min(strange)!r}, and the recipe has no such model")
        self.steps_taught = dict(state["taught"])
        self._offloaded = {name: scalars for name, scalars in members.items() if self._placement.holds(name)}
        for name in self._offloaded:
            save_file(checkpoint.read_tensors(folder, name), self._folder / f"{name}.safetensors")
        for name in filter(self._keeps_snapshot, snapshots):
            self.snapshots[name] = self._make_tagger(name).to(self._session.device).eval()
            stem = _snapshot(name)
            self.snapshots[name].load_own(checkpoint.read_tensors(folder, stem), f"checkpoint {folder.name}: {stem}")


def _snapshot(name: str) -> str:
    """The stem of the file in a checkpoint that holds a model's snapshot."""
    return f"snapshot-{name}"


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _carried(phase: Phase, key: TeacherKey) -> frozenset[str]:
    """What a teacher is asked for beside logits by the edges that share a forward."""
    return frozenset(edge.carries for edge in phase.edges if teacher_key(edge) == key and edge.carries != "logits")


def _needs(phase: Phase, name: str, *, frames: bool) -> frozenset[str]:
    """What the training forward of a model has to give beside logits, as a student and as a teacher that trains.

    With `frames` it learns from labels in time.
    """
    edges = [edge for edge in phase.edges if edge.carries != "logits"]
    of_student = {"sequence" if edge.carries == "temporal" else edge.carries for edge in edges if edge.student == name}
    of_labels = {"frames"} if frames else set()
    return frozenset(
        of_student | of_labels | {edge.carries for edge in edges if edge.teacher == name and edge.source == "live"}
    )
