"""What a search varies and how it judges: frozen values of a recipe's `search` table. Imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from workloads.config.checked import Checked

LOWER_IS_BETTER = ("log_loss", "ece")
CHANGEABLE = re.compile(r"edges\.\d+\.(weight|temperature)|models\.\w+\.optimizer\.(lr|weight_decay)")
FIXED = (  # places that decide on what a trial is judged, or when: whoever may choose them chooses the easiest
    "search",
    "data.format",
    "data.root",
    "data.manifest",
    "data.labels",
    "data.test_fold",
    "data.val_share",
    "data.val_slice",
    "data.split_seed",
    "data.synthetic_clips",
    "data.synthetic_seed",
    "train.seed",
    "train.eval_every",
    "train.checkpoint_every",
    "train.score_test",
)
SMALLEST_POPULATION = 4  # of which the worst quarter follows the best one


@dataclass(frozen=True, kw_only=True)
class Range(Checked):
    """Every number from `low` to `high`, both included; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = False  # even steps of the logarithm, for what spans orders of magnitude

    def __post_init__(self) -> None:
        self._require(self.low < self.high, "low", f"must be below high = {self.high}")
        self._require(not self.log or self.low > 0, "low", "must be above 0 with log = true")


@dataclass(frozen=True, kw_only=True)
class Choices(Checked):
    """One of these values."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        distinct = [value for number, value in enumerate(self.choices) if value not in self.choices[:number]]
        self._require(len(distinct) == len(self.choices) >= 2, "choices", "must be two or more different values")


@dataclass(frozen=True, kw_only=True)
class Search(Checked):
    """What is varied, who proposes, how long a trial lasts, and what is best (`orchestrator/search.py`)."""

    space: dict[str, Range | Choices]  # dotted places in the recipe, as --set takes them
    searcher: Literal["grid", "random", "tpe", "pbt"] = "tpe"
    scheduler: Literal["none", "asha", "hyperband"] = "none"
    trials: int = 24  # at most; a grid has as many as it has points
    share: float = 1.0  # of the recipe's burn-in, turns and steps, that a trial takes; periods stay as they are
    rungs: int = 1  # equal parts of a trial, at whose ends it is judged
    halving: int = 3  # asha, hyperband: one in so many goes on to the next rung
    slices: int = 2  # of the training folds: a trial learns once for each and is judged by the mean
    metric: Literal["log_loss", "ece", "mAP", "accuracy"] = "log_loss"
    models: tuple[str, ...] = ()  # whose metric counts, the mean of them; empty: all
    second: Literal["", "macs", "latency_ms"] = ""  # a second objective, of the same models; tpe only
    finalists: int = 1  # the best so many are repeated with `repeats` seeds before one of them wins
    repeats: int = 3  # seeds of the winner, and of its control without teachers
    seed: int = 0  # of the proposals

    def __post_init__(self) -> None:
        self._require(bool(self.space), "space", "names no place in the recipe; there is nothing to search")
        judging = [place for place in self.space if any(_overlap(place, fixed) for fixed in FIXED)]
        if judging:
            raise ValueError(
                f"space: {', '.join(judging)} cannot be searched: it decides on what a trial is judged, or when; leave "
                "it out, or change it for all trials with --set"
            )
        for name in ("trials", "rungs", "slices", "finalists", "repeats"):
            self._require(getattr(self, name) >= 1, name, "must be 1 or more")
        self._require(0 < self.share <= 1, "share", "must be above 0 and at most 1, a full run")
        self._require(self.halving >= 2, "halving", "must be 2 or more")
        if self.searcher == "grid":
            ranges = [place for place, values in self.space.items() if isinstance(values, Range)]
            self._require(not ranges, "searcher", f"a grid needs choices, and {', '.join(ranges)} is a range")
        if self.scheduler != "none":
            self._require(self.rungs >= 2, "rungs", f"must be 2 or more for scheduler = {self.scheduler!r} to stop at")
            self._require(
                self.searcher != "pbt", "scheduler", "must be 'none' with searcher = 'pbt', which stops nobody"
            )
        if self.scheduler == "hyperband":
            self._require(
                self.searcher != "tpe", "scheduler", "hyperband takes all trials at once, tpe one by one; use asha"
            )
        if self.pauses:
            self._require(self.slices == 1, "slices", "must be 1 where trials wait for one another (pbt, hyperband)")
        if self.searcher == "pbt":
            self._check_population()
        if self.second:
            self._require(self.searcher == "tpe", "second", "needs searcher = 'tpe'")
            self._require(self.scheduler == "none", "second", "needs scheduler = 'none': it stops by one objective")

    def _check_population(self) -> None:
        self._require(self.rungs >= 2, "rungs", "must be 2 or more for searcher = 'pbt' to change values at")
        self._require(
            self.trials >= SMALLEST_POPULATION, "trials", f"must be {SMALLEST_POPULATION} or more with searcher = 'pbt'"
        )
        fixed = [place for place in self.space if not CHANGEABLE.fullmatch(place)]
        if fixed:
            raise ValueError(
                f"space: {', '.join(fixed)} cannot change while a model learns; searcher = 'pbt' varies weights and "
                "temperatures of edges, learning rates and weight decays"
            )

    @property
    def pauses(self) -> bool:
        """Whether trials wait at rungs for one another, and go on from what they kept there."""
        return self.searcher == "pbt" or self.scheduler == "hyperband"

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


def objective_name(metric: str) -> str:
    """What is minimised: a metric of which more is better is taken from 1."""
    return f"val {metric}" if metric in LOWER_IS_BETTER else f"1 - val {metric}"


def _overlap(one: str, other: str) -> bool:
    """Whether one of two dotted places is the other, or holds it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
