"""The shapes of a run's records and recipe, as far as reports read them: what another program wrote may have others."""

from typing import Annotated, Literal, NotRequired

from annotated_types import Interval, Len
from pydantic import StringConstraints
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.tracking.record_mapping import RunRecord
from workloads.runtime.json_files import PartCounts

MAX_AUDIO, MAX_CLIPS = 80_000, 8  # letters of a clip's sound, clips
MAX_MS = 253_402_300_800_000  # since the epoch: the end of the year 9999, the last that can be printed


class TimedRecord(TypedDict):
    """A line of an event log, of whatever kind."""

    kind: str
    t: Annotated[int, Interval(ge=0, lt=MAX_MS)]


class EdgeFields(TypedDict):
    """An edge in recipe.json and in a record of a phase."""

    teacher: str
    student: str
    weight: float
    temperature: float
    source: str
    view: str
    gate: str


class Durations(TypedDict):
    """Seconds of the clips, in a record of the data."""

    min: float
    median: float
    max: float
    total: float
    shorter: int
    longer: int


class ClipCounts(TypedDict):
    """For each tag the number of clips, by part, in a record of the data."""

    train: list[int]
    val: list[int]
    test: list[int]


class StoreFields(TypedDict):
    """A store that teaches along an edge, in a record of the data."""

    edge: str
    store: str
    column: str
    clips: int
    views: int
    without_rows: int
    teachers: NotRequired[dict[str, str]]  # SHA-256 of their weights, by name
    waveforms_compared: NotRequired[int]
    not_compared: NotRequired[str]  # why; empty where some were


class QuarantinedFields(TypedDict):
    """A clip that is not used, in a record of the data."""

    clip_id: str
    path: str
    reason: str


class MendedFields(TypedDict):
    """A clip whose file was mended, in a record of the data."""

    clip_id: str
    path: str
    notes: list[str]


class DataRecord(TimedRecord):
    """A line of an event log: the data set is read."""

    fingerprint: str
    tags: list[str]
    labels: Literal["single", "multi"]
    clips: PartCounts
    quarantined: list[QuarantinedFields]
    mended: NotRequired[list[MendedFields]]
    warnings: NotRequired[list[str]]
    stores: NotRequired[list[StoreFields]]
    unlabelled: NotRequired[int]
    left_out: NotRequired[int]
    rate: NotRequired[int]
    clip_seconds: NotRequired[float]
    durations: NotRequired[Durations]
    folds: NotRequired[dict[str, PartCounts]]
    clips_per_tag: NotRequired[ClipCounts]
    known_per_tag: NotRequired[ClipCounts | None]


class ReplacedRecord(TimedRecord):
    """A line of an event log: a training clip turned out to be damaged, and another one takes its place."""

    step: int
    clip_id: str
    reason: str
    by: str


class PhaseRecord(TimedRecord):
    """A line of an event log: a phase begins."""

    step: int
    index: int
    steps: int
    trains: list[str]
    edges: list[EdgeFields]
    total: NotRequired[int]
    of: NotRequired[int]


class MetricsRecord(TimedRecord):
    """A line of an event log: values of a step."""

    step: int
    values: dict[str, float]


class CheckpointRecord(TimedRecord):
    """A line of an event log: a checkpoint is written."""

    step: int


class BadRecord(TimedRecord):
    """A line of an event log: a loss or gradient of a step is not finite."""

    step: int
    models: list[str]
    policy: str
    clip_ids: list[str]


class StartRecord(TimedRecord):
    """A line of an event log: an attempt begins."""

    step: int
    attempt: int
    damaged: list[str]


class WorkerFailedRecord(TimedRecord):
    """A line of an event log: a worker has failed, and Ray starts the workers again or gives up."""

    rank: int
    error: str


class ModelResult(TypedDict):
    """A model's row in the `result` record: sizes, steps, scores by metric, and what was delivered."""

    params: int
    steps_taught: int  # in which it was the teacher
    steps_learned: int
    val: dict[str, float]
    test: dict[str, float]
    per_tag: dict[str, float]
    confusion: NotRequired[list[list[int]]]
    cooccurrence: NotRequired[list[list[float | None]]]
    checkpoint: str
    weights_sha256: str


class ShownClip(TypedDict):
    """A test clip that a report draws: its keyword, where that is in seconds, its log-mel as bands of frames."""

    clip_id: str
    tag: str
    onset: float
    offset: float
    mel: Annotated[list[list[int]], Len(1)]


class ShownProfiles(TypedDict):
    """When a model listens in these clips: where its steps are in seconds, the share of each step, by clip."""

    profile: str
    first: float
    step: float
    clips: list[Annotated[list[Annotated[float, Interval(gt=0)]], Len(1)]]


class ProfilesRecord(TimedRecord):
    """A line of an event log: when the models of a run on keywords listen, in a few test clips."""

    seconds: Annotated[float, Interval(gt=0)]
    clips: list[ShownClip]
    models: dict[str, ShownProfiles]


class SaidFields(TypedDict):
    """What a model said of a clip: probabilities of the likeliest tags, and of the true ones."""

    said: dict[str, float]
    truth: dict[str, float]


class MistakenClip(TypedDict):
    """A test clip that a report plays: its sound as MP3 in base64, its log-mel as bands of frames."""

    clip_id: str
    truth: list[str]
    models: dict[str, SaidFields]
    seconds: Annotated[float, Interval(gt=0)]
    whole_seconds: float
    top_hz: Annotated[int, Interval(gt=0)]
    audio: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*$", max_length=MAX_AUDIO)]
    mel: Annotated[list[Annotated[list[int], Len(1)]], Len(1)]


class MistakesRecord(TimedRecord):
    """A line of an event log: the test clips that the models got most wrong."""

    clips: Annotated[list[MistakenClip], Len(0, MAX_CLIPS)]


class ResultRecord(TimedRecord):
    """A line of an event log: the run is trained, scored and delivered."""

    steps: int
    models: dict[str, ModelResult]


class ComparedScore(TypedDict):
    """A score of a student and of its control, in a record of the comparison."""

    taught: float
    untaught: float
    difference: float
    interval: Annotated[list[float], Len(2, 2)]


class ComparedModel(ComparedScore):
    """A student's comparison with its control: of the primary score, of the log loss, of frames if it has them, and of
    attention to keywords; and why other scores are not compared."""

    metric: str
    seeds: int
    clips: int
    log_loss: ComparedScore
    frame_mAP: NotRequired[ComparedScore]
    attention_mass: NotRequired[ComparedScore]
    own_attention_mass: NotRequired[ComparedScore]
    not_compared: NotRequired[dict[str, str]]


class ComparisonRecord(TimedRecord):
    """A line of an event log: students are compared with their controls."""

    models: dict[str, ComparedModel]


class EndRecord(TimedRecord):
    """A line of an event log: an attempt has ended."""

    status: str


RECORDS = {
    "run": RunRecord,
    "start": StartRecord,
    "data": DataRecord,
    "replaced": ReplacedRecord,
    "phase": PhaseRecord,
    "metrics": MetricsRecord,
    "bad": BadRecord,
    "worker-failed": WorkerFailedRecord,
    "checkpoint": CheckpointRecord,
    "profiles": ProfilesRecord,
    "mistakes": MistakesRecord,
    "result": ResultRecord,
    "comparison": ComparisonRecord,
    "end": EndRecord,
}


class ArchFields(TypedDict):
    """An architecture in recipe.json, as far as reports read it."""

    family: str


class ModelFields(TypedDict):
    """A model in recipe.json, as far as reports read it."""

    arch: ArchFields
    control_of: NotRequired[str]


class RecipeData(TypedDict):
    """The data table of recipe.json, as far as reports read it."""

    labels: str


class TrainTable(TypedDict):
    """The train table of recipe.json, as far as reports read it."""

    shard_size: NotRequired[int]
    shards: NotRequired[int]


class RecipeFile(TypedDict):
    """recipe.json of a run: the resolved recipe, as far as reports read it; resuming compares all of it."""

    name: str
    models: dict[str, ModelFields]
    edges: list[EdgeFields]
    data: RecipeData
    train: NotRequired[TrainTable]
