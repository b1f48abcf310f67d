"""The settings of a run: frozen values, checked when they are built.

Does not depend on a file format (`orchestrator/recipes/loader.py` reads TOML) and imports nothing heavy: parsing a
recipe must not import torch.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from workloads.config.architectures import Arch
from workloads.config.checked import Checked
from workloads.config.data import Data
from workloads.config.edge import Edge
from workloads.config.frames import check_frames
from workloads.config.placement import Service, group_models
from workloads.config.resources import Resources
from workloads.config.schedules import Schedule
from workloads.config.search import Search

MAX_FRAMES = 400_000  # of log-mels: an hour has 360 000; of waveforms samples
MAX_BATCH = 2**24  # clips of a shard, shards of a batch
MAX_LOADERS = 256
MAX_REPORT_CLIPS = 4  # at most 60 kB each: a report stays below 1.5 MB
MAX_THREADS = 1024  # what torch and OpenMP take without failing
MAX_AVERAGED = 1000  # copies of a model's weights that are kept in memory
FRONT_ENDS = {  # kind -> its sample rate in Hz
    "logmel64": 16_000,
    "kaldi128": 16_000,
    "efficientat128": 32_000,
    "pretrainedsed128": 16_000,
    "ced64": 16_000,
    "logmel40": 16_000,
    "logmel64_8k": 8_000,
    "logmel40_8k": 8_000,
    "waveform16k": 16_000,
    "waveform16k_norm": 16_000,
}
WAVEFORMS = ("waveform16k", "waveform16k_norm")  # kinds that are no log-mels but the samples
LOG_MELS = tuple(kind for kind in FRONT_ENDS if kind not in WAVEFORMS)
MAX_NAME = 150  # characters of a recipe's name; a run's id adds date, time and seed
PRETRAINED = "pretrained:"  # what an `init` begins with that names installed weights, no file
Value = TypeVar("Value")
MODEL_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Augment(Checked):
    """How a view of a clip differs from the clip; every draw is keyed (`workloads/data/augment.py`)."""

    view_seed: int = 0
    roll: float = 0.0  # largest shift, as a share of the clip, wrapped around
    gain_db: float = 0.0  # largest change of level, up or down
    mixup: float = 0.0  # probability that a clip is mixed with a partner
    mixup_alpha: float = 1.0  # weight ~ Beta(alpha, alpha)
    mixup_on: Literal["waveform", "mel"] = "waveform"
    mask_time: float = 0.0  # widest time mask, as a share of the duration
    mask_mel: float = 0.0  # widest frequency mask, as a share of the mel scale

    def __post_init__(self) -> None:
        self._require_0_to_1("roll", "mixup", "mask_time", "mask_mel")
        self._require(self.gain_db >= 0, "gain_db", "must be 0 dB or more")
        self._require_positive("mixup_alpha")

    @property
    def has_clean_view(self) -> bool:
        """Whether the clean view differs from the view: crop and mixup are the same in both."""
        return any((self.roll, self.gain_db, self.mask_time, self.mask_mel))


@dataclass(frozen=True, kw_only=True)
class FrontEnd(Checked):
    """The waveform's transform to what the network hears, and its normalisation: by default the kind's mean and std."""

    kind: Literal[
        "logmel64",
        "kaldi128",
        "efficientat128",
        "ced64",
        "logmel40",
        "logmel64_8k",
        "logmel40_8k",
        "pretrainedsed128",
        "waveform16k",
        "waveform16k_norm",
    ] = "logmel64"
    mean: float | None = None
    std: float | None = None
    frames: int = 0  # cut or pad to this number, as AST does (1024 for a clip of 10 s); 0: as many as the clip has

    def __post_init__(self) -> None:
        self._require(self.std is None or self.std > 0, "std", "must be above 0")
        self._require(self.frames >= 0, "frames", "must be above 0, or 0 for as many as the clip has")
        self._require_at_most(MAX_FRAMES, "frames")

    @property
    def rate(self) -> int:
        return FRONT_ENDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Optimizer(Checked):
    """Adam and its learning-rate schedule, counted in the model's own steps: shares are of all of them."""

    kind: Literal["adamw", "adam"] = "adamw"  # adamw: decoupled weight decay; adam: L2 term in the gradient
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps
    warmup_curve: Literal["linear", "exponential"] = "linear"
    decay: Literal["cosine", "constant", "step", "linear"] = "cosine"  # cosine starts where the warm-up ends
    decay_from: float = 0.0  # step, linear: share of the steps at which the rate first falls
    decay_every: float = 0.0  # step: share of the steps between two falls
    decay_factor: float = 0.5  # step: factor of the rate at each fall
    decay_until: float = 1.0  # linear: share of the steps at which the rate reaches its floor
    floor: float = 0.0  # cosine, linear: the rate at the end, as a share of lr
    clip_norm: float = 1.0  # largest gradient norm; 0: no clipping

    def __post_init__(self) -> None:
        self._require_positive("lr")
        self._require(all(0 <= beta < 1 for beta in self.betas), "betas", "each must be 0 up to 1")
        self._require_non_negative("weight_decay")
        self._require(0 <= self.warmup < 1, "warmup", "must be a share of the steps, 0 up to 1")
        self._require(0 <= self.floor <= 1, "floor", "must be a share of lr, 0 to 1")
        self._require(self.clip_norm >= 0, "clip_norm", "must be 0 (off) or more")
        if self.decay in ("step", "linear"):
            after = f"must be a share of the steps from warmup = {self.warmup:g} on, below 1"
            self._require(self.warmup <= self.decay_from < 1, "decay_from", after)
        if self.decay == "step":
            self._require(0 < self.decay_every <= 1, "decay_every", "must be a share of the steps above 0")
            self._require(0 < self.decay_factor < 1, "decay_factor", "must be above 0 and below 1")
        if self.decay == "linear":
            ends = f"must be a share of the steps above decay_from = {self.decay_from:g}, at most 1"
            self._require(self.decay_from < self.decay_until <= 1, "decay_until", ends)


@dataclass(frozen=True, kw_only=True)
class Average(Checked):
    """Which weights are delivered: the last, their moving average, or the mean of the best at validation."""

    kind: Literal["none", "ema", "best"] = "none"
    decay: float = 0.99  # of the moving average, per own step
    best: int = 3  # number of weights averaged, those with the best validation scores

    def __post_init__(self) -> None:
        self._require_below_1("decay")
        self._require(self.best >= 1, "best", "must be 1 or more")
        self._require_at_most(MAX_AVERAGED, "best")


@dataclass(frozen=True, kw_only=True)
class Model(Checked):
    """One named model of a run: architecture, front end, optimizer, weight averaging, initial weights."""

    arch: Arch
    front_end: FrontEnd = field(default_factory=FrontEnd)
    optimizer: Optimizer = field(default_factory=Optimizer)
    average: Average = field(default_factory=Average)
    # URI of a published tagger, or of a safetensors file with the family's own key names; or pretrained:NAME, for
    # weights of an installed package (`models/pretrained.py`)
    init: str = ""
    frame_labels: bool = False  # learn when tags sound too, from clips of which it is known (docs/recipes.md)
    control_of: str = ""  # the student beside which this one trains without teachers (`config/controls.py`)


@dataclass(frozen=True, kw_only=True)
class Train(Checked):
    """The settings of the training loop."""

    seed: int = 0  # of the order, initial weights and dropout; views have augment.view_seed
    shard_size: int = 32  # clips of one forward pass; batch norm sees one shard
    shards: int = 1  # shards in the global batch, a multiple of the number of workers
    precision: Literal["fp32", "bf16"] = "fp32"  # of training and of the validations during it; final scores: fp32
    device: Literal["cpu", "cuda"] = "cpu"
    tf32: bool = False  # on cuda: round the inputs of fp32 products to 10 bits; log-mels and final scores never
    compile: bool = False  # use torch.compile: minutes at the start, then faster steps
    threads: int = 2  # of torch, in each worker
    loaders: int = 0  # processes of each worker that load clips ahead; 0: its training thread loads them
    prefetch: int = 2  # shards that each loader process is ahead
    label_smoothing: float = 0.0
    log_every: int = 10  # steps
    eval_every: int = 100
    checkpoint_every: int = 200
    score_test: bool = True  # at the end; the trials of a search do not read the test fold
    report_clips: int = 3  # test clips got most wrong whose sound goes into the report; 0: none, for private sound
    keep_last: int = 2  # checkpoints kept, besides each model's best
    bad_numbers: Literal["stop", "skip"] = "stop"  # at a loss or gradient that is not finite; a skipped step counts

    def __post_init__(self) -> None:
        self._require_positive(
            "shard_size", "shards", "threads", "prefetch", "log_every", "eval_every", "checkpoint_every", "keep_last"
        )
        self._require_non_negative("loaders", "report_clips")
        self._require_at_most(MAX_REPORT_CLIPS, "report_clips")
        self._require_at_most(MAX_LOADERS, "loaders", "prefetch")
        self._require_at_most(MAX_BATCH, "shard_size", "shards")
        self._require_at_most(MAX_THREADS, "threads")
        self._require_below_1("label_smoothing")
        self._require(
            not self.tf32 or self.device == "cuda", "tf32", "needs device = 'cuda'; set that, or tf32 = false"
        )

    @property
    def batch_size(self) -> int:
        return self.shard_size * self.shards


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """A whole run. The schedule decides which edges are open in which phase (`workloads/distill/schedule.py`)."""

    name: str
    about: str = ""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    models: dict[str, Model]
    edges: tuple[Edge, ...] = ()
    schedule: Schedule
    compare: bool = False  # train an untaught control beside each student, and say what teaching did
    train: Train = field(default_factory=Train)
    resources: Resources = field(default_factory=Resources)  # of a worker on a Ray cluster
    # colocated: every worker holds all models; split: each holds those of one group; service: frozen teachers are in
    # actors of their own
    placement: Literal["colocated", "split", "service"] = "colocated"
    split_groups: tuple[tuple[str, ...], ...] = ()  # split: models that share workers; empty: those of a family do
    service: Service = field(default_factory=Service)
    search: Search | None = None  # what `antiphon search` varies; a single run ignores it

    def __post_init__(self) -> None:
        self._require(0 < len(self.name) <= MAX_NAME, "name", f"must have 1 to {MAX_NAME} characters, as folders have")
        self._check_models()
        self._check_edges()
        self._check_frames()
        self._check_controls()
        if self.search:
            self._check_search(self.search)
        self._check_mixup()
        self._check_rate()
        if self.split_groups or self.placement == "split":
            self.group_models()

    def _check_models(self) -> None:
        self._require(bool(self.models), "models", "needs at least one model")
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"models.{name}: a name is a small letter, then small letters, digits or _")

    def _check_edges(self) -> None:
        for edge in self.edges:
            self.require_known_models("edges", (edge.student,) if edge.store else (edge.teacher, edge.student))
            if edge.carries == "logits" and edge.loss == "bce" and self.data.labels == "single":
                raise ValueError(
                    f"edges {edge.key}: loss = 'bce': needs data.labels = 'multi', a probability for each tag; set 'kl'"
                )
        keys = [edge.key for edge in self.edges]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"edges {twice[0]}: two edges have this name; keep one, or give one a name of its own")
        joined = [(edge.teacher, edge.student, edge.carries, edge.column) for edge in self.edges]
        for edge, pair in zip(self.edges, joined, strict=True):
            if joined.count(pair) > 1:
                raise ValueError(
                    f"edges {edge.key}: two edges carry {edge.carries} from this teacher to this student; keep one"
                )
        if self.train.compile and any(edge.carries != "logits" for edge in self.edges):
            raise ValueError(
                "train.compile = true: not with edges that carry embeddings, profiles or frames so far; set it to false"
            )

    def _check_frames(self) -> None:
        check_frames(
            {name: model.arch for name, model in self.models.items()},
            [name for name, model in self.models.items() if model.frame_labels],
            self.edges,
            labels=self.data.labels,
            compiled=self.train.compile,
            rolled_and_mixed=bool(self.augment.roll and self.augment.mixup),
        )

    def _check_controls(self) -> None:
        if self.compare and not self.edges:
            raise ValueError("compare = true: the recipe has no edges, so nothing is taught; set compare = false")
        if self.compare and not self.train.score_test:
            raise ValueError("compare = true: needs the test scores that train.score_test = false leaves out")
        controls = {name: model.control_of for name, model in self.models.items() if model.control_of}
        if controls and not self.compare:
            raise ValueError(f"models.{next(iter(controls))}.control_of: needs compare = true")
        students = {edge.student for edge in self.edges}
        require_students(controls, [name for name in self.models if name in students])
        for name, student in controls.items():
            own, taught = self.models[name], self.models[student]
            if (own.arch, own.front_end, own.init) != (taught.arch, taught.front_end, taught.init):
                raise ValueError(
                    f"models.{name}: a control has the arch, front_end and init of its student {student}; leave these "
                    "keys out"
                )
            if any(name in (edge.teacher, edge.student) for edge in self.edges):
                raise ValueError(f"models.{name}: a control neither teaches nor is taught; remove its edges")

    def _check_search(self, search: Search) -> None:
        self.require_known_models("search.models", search.models)
        if search.metric == "accuracy" and self.data.labels == "multi":
            raise ValueError("search.metric = 'accuracy': needs data.labels = 'single'; use 'mAP' or 'log_loss'")

    def _check_rate(self) -> None:
        """`data.rate` raises the rate at which clips are cached; a lower one would do nothing."""
        if 0 < self.data.rate < self.rate:
            name = next(name for name, model in self.models.items() if model.front_end.rate == self.rate)
            raise ValueError(
                f"data.rate = {self.data.rate}: models.{name} hears {self.rate} Hz, and a lower rate has no effect; "
                "leave it out, or set a higher one"
            )

    def _check_mixup(self) -> None:
        if self.augment.mixup and self.train.shard_size == 1:
            raise ValueError(
                "augment.mixup: a clip is mixed with another one of its shard, and train.shard_size is 1; set it to 2 "
                "or more, or augment.mixup to 0"
            )
        kinds = {model.front_end.kind for model in self.models.values()}
        if self.augment.mixup and self.augment.mixup_on == "mel" and len(kinds) > 1:
            raise ValueError(
                f"augment.mixup_on = 'mel': the models' front ends differ ({', '.join(sorted(kinds))}); "
                "mel-mixup needs one shared front end, use 'waveform'"
            )

    def require_known_models(self, where: str, names: tuple[str, ...]) -> None:
        """Raise ValueError for a name that is not among the models; `where` is the recipe key that holds it."""
        for name in names:
            if name not in self.models:
                raise ValueError(f"{where}: no model named {name!r}; the models are {', '.join(self.models)}")

    def group_models(self) -> tuple[tuple[str, ...], ...]:
        """The models that share workers under placement = "split"; see `placement.group_models`."""
        families = {name: model.arch.family for name, model in self.models.items()}
        controls = {name: model.control_of for name, model in self.models.items() if model.control_of}
        return group_models(families, controls, self.split_groups)

    @property
    def rate(self) -> int:
        """The rate in Hz at which clips are cached: the highest that any model's front end, or `data.rate`, needs."""
        return max(self.data.rate, *(model.front_end.rate for model in self.models.values()))


def require_students(controls: dict[str, Any], students: list[str]) -> None:
    """ValueError for a `control_of` (by the control's name) that is no model that an edge leads to, or has two."""
    for name, student in controls.items():
        place = f"models.{name}.control_of = {student!r}"
        if student not in students:
            raise ValueError(
                f"{place}: must be a model that an edge leads to: {', '.join(students) or 'there is none'}"
            )
        if list(controls.values()).count(student) > 1:
            raise ValueError(f"{place}: it has two controls; keep one")


def restore(kind: type[Value], values: object) -> Value:
    """A config value from plain values, as `asdict` and JSON give them; ValueError where they do not fit `kind`."""
    from pydantic import TypeAdapter, ValidationError

    from workloads.config.mistakes import first_mistake

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        keys = ", ".join(own.name for own in fields(kind))  # type: ignore[arg-type]
        raise ValueError(first_mistake(error, f"the keys of {kind.__name__} are {keys}", kind)) from None
