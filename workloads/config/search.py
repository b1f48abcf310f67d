"""What a search varies and how it scores trials: a recipe's `search` table as frozen values. Imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from workloads.config.checked import Checked

LOWER_IS_BETTER = ("log_loss", "ece")
PBT_KEYS = re.compile(r"edges\.\d+\.(weight|temperature)|models\.\w+\.optimizer\.(lr|weight_decay)")
UNSEARCHABLE_KEYS = (  # they decide how or when a trial is scored: a search would choose the easiest setting
    "search",
    "data.format",
    "data.root",
    "data.manifest",
    "data.audioset_train",
    "data.labels",
    "data.test_fold",
    "data.val_share",
    "data.val_slice",
    "data.split_seed",
    "data.synthetic_clips",
    "data.synthetic_seed",
    "data.keywords",
    "data.words",
    "data.noise",
    "data.snr_db",
    "train.seed",
    "train.eval_every",
    "train.checkpoint_every",
    "train.score_test",
)
MAX_TRIALS = 10_000  # their names have four digits
MAX_RUNGS = 1000
MAX_CHOICES = 1000  # of one key: each makes a recipe that is checked before a search starts
MAX_SEED = 2**32 - 1 - MAX_TRIALS  # Optuna's, which the number of trials is added to
MIN_POPULATION = 4  # the worst quarter of a population continues from the best quarter


@dataclass(frozen=True, kw_only=True)
class Range(Checked):
    """Every number from `low` to `high`, both included; integers where both are integers."""

    low: int | float
    high: int | float
    log: bool = False  # uniform in the logarithm, for values that span orders of magnitude

    def __post_init__(self) -> None:
        self._require(self.low < self.high, "low", f"must be below high = {self.high}")
        self._require(not self.log or self.low > 0, "low", "must be above 0 with log = true")


@dataclass(frozen=True, kw_only=True)
class Choices(Checked):
    """One of these values."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.choices) > MAX_CHOICES:
            raise ValueError(f"choices: {len(self.choices):,} values; must be at most {MAX_CHOICES:,}, or low and high")
        distinct = [value for number, value in enumerate(self.choices) if value not in self.choices[:number]]
        self._require(len(distinct) == len(self.choices) >= 2, "choices", "must be two or more different values")


@dataclass(frozen=True, kw_only=True)
class Search(Checked):
    """What is varied, what proposes trials, how long a trial is, and the objective (`orchestrator/search/`)."""

    space: dict[str, Range | Choices]  # dotted recipe keys, as --set takes them
    searcher: Literal["grid", "random", "tpe", "pbt"] = "tpe"
    scheduler: Literal["none", "asha", "hyperband"] = "none"
    trials: int = 24  # upper bound; a grid has as many as it has points
    share: float = 1.0  # of the recipe's burn-in, turns and steps that a trial takes; periods do not change
    rungs: int = 1  # equal parts of a trial; it is scored at the end of each
    halving: int = 3  # asha, hyperband: one trial in this number continues to the next rung
    slices: int = 2  # of the training folds: a trial trains once per slice, its score is the mean
    metric: Literal["log_loss", "ece", "mAP", "accuracy"] = "log_loss"
    models: tuple[str, ...] = ()  # whose mean metric is the objective; empty: all
    second: Literal["", "macs", "latency_ms"] = ""  # a second objective, of the same models; tpe only
    finalists: int = 1  # number of best trials that are repeated with `repeats` seeds before one of them wins
    repeats: int = 3  # number of seeds of the winner, and of its control without teachers
    seed: int = 0  # of the proposals

    def __post_init__(self) -> None:
        self._check_space()
        for name in ("trials", "rungs", "slices", "finalists", "repeats"):
            self._require(getattr(self, name) >= 1, name, "must be 1 or more")
        self._require_at_most(MAX_TRIALS, "trials")
        self._require_at_most(MAX_RUNGS, "rungs")
        self._require_non_negative("seed")
        self._require_at_most(MAX_SEED, "seed")
        self._require(0 < self.share <= 1, "share", "must be above 0 and at most 1, a full run")
        self._require(self.halving >= 2, "halving", "must be 2 or more")
        if self.searcher == "grid":
            ranges = [key for key, values in self.space.items() if isinstance(values, Range)]
            self._require(not ranges, "searcher", f"a grid needs choices, and {', '.join(ranges)} is a range")
        self._check_scheduler()
        if self.pauses:
            self._require(self.slices == 1, "slices", "must be 1 where trials wait for one another (pbt, hyperband)")
        if self.searcher == "pbt":
            self._check_population()
        if self.second:
            self._require(self.searcher == "tpe", "second", "needs searcher = 'tpe'")
            self._require(self.scheduler == "none", "second", "needs scheduler = 'none': it stops by one objective")

    def _check_space(self) -> None:
        self._require(bool(self.space), "space", "names no recipe key; there is nothing to search")
        unsearchable = [key for key in self.space if any(_overlap(key, other) for other in UNSEARCHABLE_KEYS)]
        if unsearchable:
            raise ValueError(
                f"space: {', '.join(unsearchable)} cannot be searched: it decides how or when a trial is scored; leave "
                "it out, or change it for all trials with --set"
            )

    def _check_scheduler(self) -> None:
        if self.scheduler == "none":
            return
        self._require(self.rungs >= 2, "rungs", f"must be 2 or more for scheduler = {self.scheduler!r} to stop at")
        self._require(
            self.searcher != "pbt", "scheduler", "must be 'none' with searcher = 'pbt', which stops no trial early"
        )
        if self.scheduler == "hyperband":
            self._require(
                self.searcher != "tpe", "scheduler", "hyperband takes all trials at once, tpe one by one; use asha"
            )

    def _check_population(self) -> None:
        self._require(self.rungs >= 2, "rungs", "must be 2 or more for searcher = 'pbt' to change values at")
        self._require(
            self.trials >= MIN_POPULATION, "trials", f"must be {MIN_POPULATION} or more with searcher = 'pbt'"
        )
        fixed = [key for key in self.space if not PBT_KEYS.fullmatch(key)]
        if fixed:
            raise ValueError(
                f"space: {', '.join(fixed)} cannot change during a training; searcher = 'pbt' varies weights and "
                "temperatures of edges, learning rates and weight decays"
            )

    @property
    def pauses(self) -> bool:
        """Whether trials wait for one another at rungs, and resume from the checkpoints that they saved there."""
        return self.searcher == "pbt" or self.scheduler == "hyperband"

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


def objective_name(metric: str) -> str:
    """The name of the minimised quantity: 1 minus the metric where higher is better."""
    return f"val {metric}" if metric in LOWER_IS_BETTER else f"1 - val {metric}"


def _overlap(one: str, other: str) -> bool:
    """Whether one of two dotted keys equals or contains the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
