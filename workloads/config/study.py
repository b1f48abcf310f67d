"""The settings of a study: which ways of teaching are compared, on which test folds, with which seeds.

Imports nothing heavy. What a standard method is: `orchestrator/study/methods.py`.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from workloads.config.checked import Checked
from workloads.config.schedules import MAX_STEPS

CONTROL = "plain"  # the method with which all others are compared: the same models and steps, without teachers
ENSEMBLE = "ensemble"  # both models of the control together: an upper mark, no method of training
Standard = Literal["one_way", "generations", "alternate", "mutual", "gated", "per_sample"]
STANDARD: tuple[Standard, ...] = ("one_way", "generations", "alternate", "mutual", "gated", "per_sample")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # of a study and a method: they become parts of the ids of runs
MAX_NAME = 60  # characters
MAX_RUNS = 10_000  # of a study, all methods together
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Method(Checked):
    """A way of teaching of the study's own: another one with other settings of the recipe."""

    like: str = CONTROL  # the method that it begins from: plain, or a standard one of the study
    about: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # tables of a recipe; they merge as with `extends`


@dataclass(frozen=True, kw_only=True)
class Study(Checked):
    """Methods x folds x seeds, all of them fixed before the first run; the last one ends the study."""

    name: str
    about: str = ""
    recipe: str  # whose data, models and edges all methods have: a shipped one or a file
    settings: dict[str, Any] = field(default_factory=dict)  # of that recipe, for all methods
    folds: tuple[int, ...]  # the test folds
    seeds: tuple[int, ...]  # of order, initial weights and dropout
    steps: int  # that each model of each method takes itself
    burn_in: int = 0  # of these, from labels alone before models teach that are still in training
    periods: tuple[int, ...] = ()  # `alternate`: steps of a turn, one method for each; empty: half of the taught steps
    generations: tuple[str, ...] = ()  # `generations`: who follows whom; empty: all models and the first again
    weight: float = 0.5  # of an edge between two models that the recipe does not have
    standard: tuple[Standard, ...] = STANDARD
    methods: dict[str, Method] = field(default_factory=dict)  # further ones

    def __post_init__(self) -> None:
        self._require_name("name", self.name)
        for name in self.methods:
            self._require_name(f"methods.{name}", name)
            if name in (CONTROL, ENSEMBLE):
                raise ValueError(f"methods.{name}: this name is the study's own; choose another")
        self._require(bool(self.folds), "folds", "must name a test fold or more")
        self._require(bool(self.seeds), "seeds", "must name a seed or more")
        self._require_distinct("folds", "fold")
        self._require_distinct("seeds", "seed")
        self._require(all(0 <= seed <= MAX_SEED for seed in self.seeds), "seeds", f"each must be 0 to {MAX_SEED:,}")
        self._require_distinct("standard", "method")
        self._require_distinct("periods", "period")
        self._require_positive("steps")
        self._require_at_most(MAX_STEPS, "steps")
        self._require_non_negative("burn_in")
        self._require(self.burn_in < self.steps, "burn_in", f"must be below steps = {self.steps}")
        self._require(all(period > 0 for period in self.periods), "periods", "each must be above 0 steps")
        self._require_0_to_1("weight")

    def _require_name(self, key: str, name: str) -> None:
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(
                f"{key} = {name!r}: must be 1 to {MAX_NAME} small letters, digits, '.', '_' and '-', since ids of runs "
                "begin with it"
            )
