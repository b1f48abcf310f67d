"""What a cluster is to be, and what it is to run: one TOML file, from which manifests and scripts are rendered.

Owns the fields, their defaults and the rules that hold for every target. Knows neither Kubernetes nor Slurm, imports
neither Ray nor the other two packages. No field holds a secret: where one is needed, a field names where it lies.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.spec_nodes import LABEL, Head, Workers, require_reference
from cluster.spec_serve import Serve
from cluster.spec_speed import StorageSpeed
from cluster.spec_table import Table

# the commands whose work has an id of its own
ID_OPTIONS = {"run": "--run-id", "search": "--search-id", "study": "--study-id"}
# options that fields of the spec stand for, and those that a job cannot have
OWN_OPTIONS = (
    "--run-id",
    "--search-id",
    "--resume",
    "--storage",
    "--out",
    "--tracking",
    "--address",
    "--local",
    "--dry-run",
)
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
GROUP = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
ONCE_A_DAY = re.compile(r"([0-5]?\d) ([01]?\d|2[0-3]) (\S+) (\S+) (\S+)")  # minute, hour, and on which days
SECRET = re.compile(r"passw(or)?d|secret|token|credential|(api|access|private|account)_?key", re.IGNORECASE)
DAY_S = 86_400


@dataclass(frozen=True)
class Work(Table):
    """The command of antiphon that the cluster runs."""

    storage: str  # a shared folder or s3://bucket/prefix: of runs and searches; of `teach` the store itself
    recipe: str  # a shipped recipe's name, or an absolute path that the image or a volume has
    command: Literal["run", "search", "teach"] = "run"
    id: str = ""  # of the run or search; a repeated job goes on with it; with kind "cron" the day is added
    tracking: str = ""  # an MLflow server's URL or "none"; empty: MLFLOW_TRACKING_URI is among env or secrets
    arguments: tuple[str, ...] = ()  # further options of the command
    schedule: str = ""  # only for kind "cron": MINUTE HOUR DAY MONTH WEEKDAY, in UTC, once a day at most

    def __post_init__(self) -> None:
        if self.command in ID_OPTIONS:
            self._require(
                ID.fullmatch(self.id) is not None,
                "id",
                f"must be letters, digits, '.', '_' and '-': a repeated {self.command} goes on with that name",
            )
        else:
            self._require(not self.id, "id", "must be left out: a store has no id besides its storage")
            self._require(not self.tracking, "tracking", "must be left out: teach is not tracked")
        if self.tracking:
            lasting = re.match(r"https?://|none$", self.tracking) is not None
            self._require(lasting, "tracking", "must be an MLflow server's URL or none")
        relative = "://" not in self.storage and not self.storage.startswith("/")
        self._require(not relative, "storage", "must be s3://bucket/prefix, or the absolute path of a shared folder")
        shipped = "/" not in self.recipe and not self.recipe.endswith((".toml", ".json"))
        self._require(
            shipped or self.recipe.startswith("/"),
            "recipe",
            "must be a shipped recipe's name, or the absolute path of a file in the image or on a shared volume",
        )
        for argument in self.arguments:
            if re.search(r"[$`\n]", argument):
                raise ValueError(f"arguments = {argument!r}: must hold no $, ` or line break, which shells would read")
            if argument.split("=")[0] in OWN_OPTIONS:
                raise ValueError(
                    f"arguments = {argument!r}: follows from id, storage, tracking and the cluster; remove it"
                )
        if self.schedule:
            self._require(
                ONCE_A_DAY.fullmatch(self.schedule) is not None,
                "schedule",
                "must be MINUTE HOUR DAY MONTH WEEKDAY with one minute and one hour, in UTC, as '0 2 * * *'",
            )


@dataclass(frozen=True)
class Cache(Table):
    """The volume of decoded clips, mounted on every node."""

    path: str = "/cache"  # where it is mounted; becomes data.cache of the recipe
    size_gb: float = 50.0  # GiB of a folder that lives as long as the pod
    claim: str = ""  # the PersistentVolumeClaim that is used instead; all nodes must be able to write to it

    def __post_init__(self) -> None:
        self._require(self.path.startswith("/"), "path", "must be an absolute path")
        self._require(self.size_gb > 0, "size_gb", "must be above 0")


@dataclass(frozen=True)
class Limits(Table):
    """Seconds and tries."""

    deadline_s: int = 0  # a job that lasts longer is ended; 0: none
    pending_s: int = 0  # a job whose cluster is not there after that is ended; 0: none
    retries: int = 3  # how often a job that failed is begun again, in a new cluster; it goes on with its run
    keep_s: int = 600  # how long a finished job's cluster stays, to look at
    idle_s: int = 300  # how long a node without work stays, where the cluster scales

    def __post_init__(self) -> None:
        for name in ("deadline_s", "pending_s", "retries", "keep_s", "idle_s"):
            self._require(getattr(self, name) >= 0, name, "must be 0 or more")


@dataclass(frozen=True)
class Gang(Table):
    """All nodes at once or none."""

    scheduler: Literal["kueue", "volcano"]
    queue: str  # the name of the queue

    def __post_init__(self) -> None:
        self._require(bool(self.queue) and LABEL.fullmatch(self.queue) is not None, "queue", "must be a queue's name")


@dataclass(frozen=True)
class Network(Table):
    """Who may connect to the pods: their own cluster, and what is named here. What they connect to is left open."""

    operator_namespace: str = "kuberay-system"  # where KubeRay runs, which asks the dashboard for the job's state
    metrics_namespace: str = ""  # where Prometheus runs; empty: metrics are closed


@dataclass(frozen=True)
class KubeRay(Table):
    """Further fields, as KubeRay has them, merged over what is rendered; KubeRay's rules are checked afterwards."""

    job: Mapping[str, Any] = field(default_factory=dict)  # of a RayJob's spec, as deletionStrategy
    service: Mapping[str, Any] = field(default_factory=dict)  # of a RayService's spec, as upgradeStrategy
    cluster: Mapping[str, Any] = field(default_factory=dict)  # of a RayCluster's spec, as tlsOptions


@dataclass(frozen=True)
class Autoscaler(Table):
    """What `ray up` needs besides."""

    provider: Mapping[str, Any]  # type (aws, gcp, azure ...), region and so on, as Ray has it
    head_node: Mapping[str, Any]  # the provider's description of the head's machine, as InstanceType
    nodes: Mapping[str, Mapping[str, Any]]  # the same for each worker group
    ssh_user: str = "ubuntu"
    env_file: str = ""  # a file on every machine with NAME=VALUE lines: the secrets

    def __post_init__(self) -> None:
        self._require(isinstance(self.provider.get("type"), str), "provider", "must have a type, as aws or gcp")


@dataclass(frozen=True)
class Slurm(Table):
    """What a batch script needs besides."""

    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()  # further options of sbatch, as --constraint=a100
    setup: tuple[str, ...] = ()  # shell lines that make `python` and `ray` those of antiphon
    save_s: int = 300  # seconds before the time limit at which the driver is asked to save and stop

    def __post_init__(self) -> None:
        self._require(self.save_s > 0, "save_s", "must be above 0")
        for option in self.options:
            if not re.fullmatch(r"-\S+", option):
                raise ValueError(f"options = {option!r}: must be one option of sbatch without spaces, as --qos=high")
        for line in self.setup:
            if "\n" in line:
                raise ValueError(f"setup = {line!r}: must be one shell line each")


@dataclass(frozen=True, kw_only=True)
class Spec(Table):
    """A whole spec."""

    name: str  # of the job or cluster
    image: str  # of every container; cluster/Dockerfile makes one
    head: Head
    workers: Mapping[str, Workers]  # group name -> group
    kind: Literal["job", "cron", "cluster", "service"] = "job"  # a job, one a night, a cluster to submit to, taggers
    work: Work | None = None  # what runs; a cluster to submit to, and a service, may do without
    serve: Serve | None = None  # what kind "service" serves
    ray_version: str = "2.60.0"  # what the image has
    token_auth: bool = True  # Ray answers only those who have its token
    token_secret: str = ""  # the Kubernetes secret with the token, under auth_token; empty: KubeRay makes one
    env: Mapping[str, str] = field(default_factory=dict)  # variables of every container; no secrets
    secrets: Mapping[str, str] = field(
        default_factory=dict
    )  # variable -> SECRET/KEY of Kubernetes; only names elsewhere
    cache: Cache | None = None
    limits: Limits = field(default_factory=Limits)
    gang: Gang | None = None
    network: Network | None = None
    kuberay: KubeRay = field(default_factory=KubeRay)
    autoscaler: Autoscaler | None = None
    slurm: Slurm = field(default_factory=Slurm)
    storage_speed: StorageSpeed = field(default_factory=StorageSpeed)  # for `antiphon plan`

    def __post_init__(self) -> None:
        self._require(re.fullmatch(r"\S+[:@]\S+", self.image) is not None, "image", "must name a tag or digest")
        self._require(not self.image.endswith(":latest"), "image", "must be pinned: all nodes need the same one")
        self._require(re.fullmatch(r"\d+\.\d+\.\d+", self.ray_version) is not None, "ray_version", "must be as 2.60.0")
        self._require(bool(self.workers), "workers", "must have a group, as [workers.gpu]")
        for group in self.workers:
            if not GROUP.fullmatch(group):
                raise ValueError(f"workers.{group}: must be at most 40 small letters, digits and '-', a letter first")
        self._require_variables()
        self._require_work()
        self._require_service()

    def _require_variables(self) -> None:
        for name in (*self.env, *self.secrets):
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"env or secrets {name!r}: must be letters, digits and _, no digit first")
        for name in self.env:
            if SECRET.search(name) and not name.endswith(("_FILE", "_PATH")):
                raise ValueError(f"env.{name}: looks like a secret, which manifests must not hold; move it to secrets")
            if name in self.secrets:
                raise ValueError(f"env.{name}: is among secrets too; remove one of them")
        for name, reference in self.secrets.items():
            require_reference(f"secrets.{name}", reference)

    def _require_work(self) -> None:
        work, cron = self.work, self.kind == "cron"
        if work is None:
            self._require(self.kind in ("cluster", "service"), "work", f"must be given for kind {self.kind}")
            return
        self._require(not cron or bool(work.schedule), "kind", "needs work.schedule, as '0 2 * * *'")
        self._require(not cron or work.command != "teach", "kind", "repeats a run or search; a store is filled once")
        if cron and not 0 < self.limits.deadline_s <= DAY_S:
            raise ValueError(
                f"limits.deadline_s = {self.limits.deadline_s}: must be 1 to {DAY_S} with kind cron, so that a night "
                "ends before the next one begins"
            )
        known = "MLFLOW_TRACKING_URI" in {**self.env, **self.secrets}
        if work.command in ID_OPTIONS and not (work.tracking or known):
            raise ValueError(
                "work.tracking: must be an MLflow server's URL or none, or MLFLOW_TRACKING_URI be among env or secrets"
            )
        if self.cache and any(argument.startswith("data.cache=") for argument in work.arguments):
            raise ValueError("work.arguments: set data.cache, and so does cache.path; remove one of them")

    def _require_service(self) -> None:
        serve = self.serve
        if self.kind != "service":
            return
        self._require(serve is not None, "serve", "must be given for kind service")
        assert serve is not None
        room = [
            sum(getattr(group, bound) * (group.cpus // serve.cpus) for group in self.workers.values())
            for bound in ("min", "max")
        ]
        for replicas, name, held in ((serve.min, "min", room[0]), (serve.max, "max", room[1])):
            if held < replicas:
                raise ValueError(
                    f"serve.{name} = {replicas}: the groups' {name} nodes hold {held:g} replicas of {serve.cpus} CPUs; "
                    f"raise cpus or {name} of a group, or ask for fewer"
                )

    @property
    def scales(self) -> bool:
        """Whether the number of nodes changes while the cluster lives."""
        return any(group.min < group.max for group in self.workers.values())
