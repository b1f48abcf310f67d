"""One teacher of one student in a recipe, and how it teaches. Imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Literal

from workloads.config.checked import Checked

EDGE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
STORE = "store:"  # what an edge's `teacher` begins with that is a store


@dataclass(frozen=True, kw_only=True)
class Edge(Checked):
    """One teacher of one student, and how it teaches (losses: `workloads/distill/edges.py`).

    The teacher is a model of the recipe, or what teachers said before: a store, "store:URI" (docs/stores.md).
    """

    teacher: str
    student: str
    name: str = ""  # of the edge in reports, metrics and records; empty: `key`
    # an embedding: through a projection that is not delivered; temporal: when the teacher listens; frames: logits of
    # each step in time
    carries: Literal["logits", "embedding", "temporal", "frames"] = "logits"
    # of the teacher's term; labels weigh 1 minus the sum over the student's open edges that carry logits
    weight: float = 0.5
    # of logits and frames: kl, or bce, which EfficientAT and CED log and which has the gradient of kl; of embeddings:
    # cosine, mse; temporal: kl
    loss: Literal["kl", "bce", "cosine", "mse"] = "kl"
    temperature: float = 1.0
    tau_mode: Literal["teacher_only", "both"] = "teacher_only"
    # What the teacher hears. A store: "same" if the student is to hear the stored views again, "clean" if the store
    # holds clips without augmentation, "other" if it holds views that nobody can draw again.
    view: Literal["same", "clean", "other"] = "same"
    source: Literal["live", "snapshot", "ema"] = "live"
    gate: Literal["always", "better_on_clip", "switokd", "entropy"] = "always"  # entropy: for temporal edges
    align: Literal["area", "linear"] = "area"  # of a temporal edge: how the teacher's steps become the student's
    shuffled: bool = False  # a control: teacher logits are rolled by one clip within a shard
    column: str = ""  # of a store; empty: the only one with logits or probabilities
    fill: Literal["zero", "last_mean", "last_half", "last_random", "uniform"] = "zero"  # of tags that top k left out
    missing: Literal["error", "labels"] = "error"  # for clips without rows in the store

    def __post_init__(self) -> None:
        self._require(self.teacher != self.student, "student", "a model cannot be its own teacher")
        self._require(
            not self.name or bool(EDGE_NAME.fullmatch(self.name)), "name", "must be small letters, digits, - and _"
        )
        self._require_positive("temperature")
        if self.carries == "embedding":
            self._check_embedding()
        elif self.carries == "temporal":
            self._check_temporal()
        elif self.carries == "frames":
            self._check_frames()
        else:
            self._require_0_to_1("weight")
            self._require(self.gate != "entropy", "gate", "is for edges that carry profiles (carries = 'temporal')")
            self._require(self.loss in ("kl", "bce"), "loss", "is for embeddings; logits have 'kl' or 'bce'")
        self._require(
            self.carries == "temporal" or self.align == "area", "align", "is for temporal edges; leave it out"
        )
        if self.store:
            self._require(self.source == "live", "source", "a store has no other weights; leave it out")
            return
        self._require(not self.teacher.startswith(STORE), "teacher", f"{STORE}URI needs the address of a store")
        self._require(self.view != "other", "view", f"is for stores ({STORE}URI); a model hears 'same' or 'clean'")
        for name in ("column", "fill", "missing"):
            default = getattr(Edge, name)
            self._require(getattr(self, name) == default, name, f"is for stores (teacher = '{STORE}URI'); leave it out")

    def _check_embedding(self) -> None:
        self._require_non_negative("weight")
        self._require(self.loss in ("cosine", "mse"), "loss", "is for logits; embeddings have 'cosine' or 'mse'")
        for name in ("temperature", "tau_mode", "gate", "fill", "missing"):
            default = getattr(Edge, name)
            self._require(getattr(self, name) == default, name, "is for edges that carry logits; leave it out")

    def _check_temporal(self) -> None:
        self._require_non_negative("weight")
        self._require(self.loss == "kl", "loss", "profiles have 'kl'")
        if self.store:
            self._require(self.view != "other", "view", "profiles of other views do not say when; 'same' or 'clean'")
        else:
            self._require(self.view == "same", "view", "a teacher of profiles must hear what its student hears: 'same'")
        self._require(self.gate in ("always", "entropy"), "gate", "is for logits; profiles have 'always' or 'entropy'")
        for name in ("temperature", "tau_mode", "fill", "missing"):
            default = getattr(Edge, name)
            self._require(getattr(self, name) == default, name, "is for edges that carry logits; leave it out")

    def _check_frames(self) -> None:
        self._require_non_negative("weight")
        self._require(self.loss in ("kl", "bce"), "loss", "is for embeddings; frames have 'kl' or 'bce'")
        for name in ("tau_mode", "gate", "missing"):
            default = getattr(Edge, name)
            self._require(getattr(self, name) == default, name, "is for edges that carry logits; leave it out")

    @property
    def store(self) -> str:
        """The URI of the store that teaches; empty where a model does."""
        return self.teacher.removeprefix(STORE) if self.teacher.startswith(STORE) else ""

    @property
    def key(self) -> str:
        return edge_key(self.teacher, self.student, self.name, self.carries)


def edge_key(teacher: str, student: str, name: str, carries: str) -> str:
    """The name of an edge in metrics, records and pages: its own, or one that says what it joins and carries."""
    return name or f"{teacher_name(teacher)}-to-{student}{'' if carries == 'logits' else f'-{carries}'}"


def teacher_name(teacher: str) -> str:
    """What tables and pages call the teacher of an edge: a model's name, or "store" instead of an address."""
    return STORE.removesuffix(":") if teacher.startswith(STORE) else teacher
