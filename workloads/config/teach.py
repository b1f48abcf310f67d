"""The settings of a store of teacher outputs: which clips, in which views, heard by which teachers, stored how.

Does not depend on a file format (`orchestrator/recipes/loader.py` reads TOML) and imports nothing heavy.
"""

from dataclasses import dataclass, field
from typing import Literal

from workloads.config.checked import Checked
from workloads.config.data import Data
from workloads.config.recipe import MAX_BATCH, MAX_NAME, MAX_THREADS, MODEL_NAME, Augment, FrontEnd

MAX_RATE = 1_000_000  # Hz, of a waveform that an ONNX file takes
ONNX = ".onnx"
DRAWN = "drawn:"
RUN = "run:"


@dataclass(frozen=True, kw_only=True)
class Teacher(Checked):
    """One teacher: a published tagger, or an ONNX file with waveforms or log-mels in and logits or an embedding out.

    All keys but `uri` are for ONNX files; `antiphon export` writes files that say these things themselves.
    """

    # the folder of a tagger, RUN/models/NAME, or FILE.onnx; "run:RECIPE/NAME", a model of a run that is trained first;
    # for measuring "drawn:NAME", a network of the catalog with
    # drawn weights for AudioSet's tags, which says nothing of a clip
    uri: str
    input: Literal["waveform", "logmel"] | None = None
    rate: int = 0  # waveform: in Hz
    # logmel: its kind; mean and std if the file takes normalised ones; frames if it takes a fixed number
    front_end: FrontEnd | None = None
    labels: Literal["single", "multi"] | None = None
    tags: str = ""  # a text file with the tags in the order of the logits, one a line
    output: str = ""  # which of the file's outputs are the logits, where it has several
    embedding: str = ""  # which of them is the embedding

    def __post_init__(self) -> None:
        self._require(bool(self.uri), "uri", "must be the folder of a tagger, RUN/models/NAME, or FILE.onnx")
        if self.uri.startswith(RUN):
            self._require(all(self.of_run or ("",)), "uri", f"must be {RUN}RECIPE/MODEL: a recipe and a model of it")
        self._require(0 <= self.rate <= MAX_RATE, "rate", f"must be 1 to {MAX_RATE:,} Hz")
        if not self.is_onnx:
            given = [
                name
                for name in ("input", "rate", "front_end", "labels", "tags", "output", "embedding")
                if getattr(self, name)
            ]
            if given:
                raise ValueError(f"{given[0]}: is for ONNX files; {self.uri!r} does not end in {ONNX}, leave it out")

    @property
    def is_onnx(self) -> bool:
        return self.uri.endswith(ONNX)

    @property
    def of_run(self) -> tuple[str, str] | None:
        """The recipe of the run of which it is a model, and that model; None for any other teacher."""
        if not self.uri.startswith(RUN):
            return None
        recipe, _, model = self.uri.removeprefix(RUN).rpartition("/")
        return recipe, model

    @property
    def drawn(self) -> str:
        """The name of the network whose weights are drawn; empty for a teacher that lies somewhere."""
        return self.uri.removeprefix(DRAWN) if self.uri.startswith(DRAWN) else ""


@dataclass(frozen=True, kw_only=True)
class Teach(Checked):
    """What is stored, and how it is computed: the number of workers changes no byte, all else here does."""

    views: int = 1  # of each clip
    k: int = 0  # largest values kept of each row; 0: all
    holds: Literal["logits", "probabilities"] = "logits"
    mean_of: Literal["logits", "probabilities"] | None = None  # of several teachers; None: of their logits
    logits: bool = True  # false: the embeddings only, so that teachers need no tags
    apart: bool = False  # several teachers each in a column of their own
    embedding: bool = False  # store the teachers' embeddings too
    frames: bool = False  # store the teachers' logits of their steps in time too, each teacher's in a column of its own
    temporal: bool = False  # store when the teachers listen too, each teacher's profile in a column of its own
    frames_k: int = 0  # tags kept of each row of frames, those of the largest maxima; 0: all
    frames_dtype: Literal["float16", "uint8"] = "float16"  # uint8: in 255 steps from -12 to 12
    clips_per_shard: int = 512  # of a file; it is computed as a whole, and again where a worker is killed
    batch_size: int = 32
    threads: int = 2  # of torch, in each worker
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        self._require_positive("views", "clips_per_shard", "batch_size", "threads")
        self._require_non_negative("k", "frames_k")
        for name in () if self.frames else ("frames_k", "frames_dtype"):
            self._require(getattr(self, name) == getattr(Teach, name), name, "is for frames = true; leave it out")
        self._require_at_most(MAX_BATCH, "views", "clips_per_shard", "batch_size")
        self._require_at_most(MAX_THREADS, "threads")
        if not self.logits:
            self._require(
                self.embedding and not self.frames and not self.temporal,
                "logits",
                "false stores embeddings only: needs embedding = true, frames and temporal = false",
            )
            for name in ("k", "holds", "mean_of", "apart"):
                self._require(getattr(self, name) == getattr(Teach, name), name, "is for logits = true; leave it out")
        self._require(not (self.apart and self.mean_of), "mean_of", "with apart = true there is no mean; leave one out")


@dataclass(frozen=True, kw_only=True)
class TeachRecipe(Checked):
    """A whole store: its teachers hear every clip of the data, labelled or not, in `teach.views` views."""

    name: str
    about: str = ""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    teach: Teach = field(default_factory=Teach)
    teachers: dict[str, Teacher]

    def __post_init__(self) -> None:
        self._require(0 < len(self.name) <= MAX_NAME, "name", f"must have 1 to {MAX_NAME} characters")
        self._require(bool(self.teachers), "teachers", "needs at least one teacher")
        for name in self.teachers:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"teachers.{name}: a name is a small letter, then small letters, digits or _")
        if self.augment.mixup and self.augment.mixup_on != "waveform":
            raise ValueError(
                f"augment.mixup_on = {self.augment.mixup_on!r}: the mixtures of a store are of waveforms; set it to "
                "'waveform', or augment.mixup to 0 and mix in the student's recipe"
            )
        several = len(self.teachers) > 1
        for key in ("mean_of", "apart"):
            if getattr(self.teach, key) and not several:
                raise ValueError(f"teach.{key} = {getattr(self.teach, key)!r}: is for several teachers; leave it out")
        for name, teacher in self.teachers.items():
            if teacher.is_onnx:
                self._require_outputs(name, teacher)

    def _require_outputs(self, name: str, teacher: Teacher) -> None:
        """ValueError where an ONNX file does not give what is stored of it, or keys say more than that."""
        place = f"teachers.{name}"
        for key, what in (("frames", "has no logits in time"), ("temporal", "does not say when it listens")):
            if getattr(self.teach, key):
                raise ValueError(f"teach.{key} = True: {place} is an ONNX file, which {what}; set it to false")
        if self.teach.embedding and not teacher.embedding:
            raise ValueError(
                f"teach.embedding = True: {place}.embedding is missing: name the output of the file that is its "
                "embedding, or set teach.embedding to false"
            )
        if teacher.embedding and not self.teach.embedding:
            raise ValueError(
                f"{place}.embedding = {teacher.embedding!r}: no embedding is stored; set teach.embedding to true, or "
                "leave it out"
            )
        for key in () if self.teach.logits else ("output", "tags", "labels"):
            if getattr(teacher, key):
                raise ValueError(
                    f"{place}.{key}: is of logits, and teach.logits = False stores none; leave one of the two out"
                )
