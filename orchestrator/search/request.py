"""One `antiphon search` as the user typed it, and its budget. Pure; what is refused is in `validation.py`."""

import re
import shlex
from dataclasses import dataclass, field

from orchestrator.training.request import placement_options
from workloads.config.recipe import Recipe
from workloads.config.search import MAX_TRIALS

BUDGET = re.compile(r"(?P<amount>\d+(\.\d+)?)\s*(?P<unit>|trials|s|m|h|gpuh)")
MAX_TIME = 1_000_000  # seconds, minutes, hours or GPU-hours
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """Limits on the trials of a search; zero means no limit of that kind."""

    trials: int = 0
    seconds: float = 0.0
    gpu_hours: float = 0.0

    def wall_seconds(self, *, gpus: int) -> float | None:
        """The wall time that trials may take with `gpus` GPUs busy at once; None: no limit."""
        return self.seconds or 3600 * self.gpu_hours / gpus or None


def parse_budget(text: str) -> Budget:
    """ "24" or "24 trials", "90s", "30m", "2h" of wall time, "4gpuh"; ValueError for anything else."""
    match = BUDGET.fullmatch(text.strip())
    if not match or float(match["amount"]) <= 0:
        raise ValueError(f"--budget {text!r}: must be a number of trials (24), of minutes or hours (30m, 2h), or 4gpuh")
    amount, unit = float(match["amount"]), match["unit"]
    if amount > (MAX_TRIALS if unit in ("", "trials") else MAX_TIME):
        raise ValueError(f"--budget {text[:40]!r}: must be at most {MAX_TRIALS:,} trials, or {MAX_TIME:,} of s, m or h")
    if unit in ("", "trials"):
        if amount != int(amount):
            raise ValueError(f"--budget {text!r}: the number of trials must be whole, such as {round(amount) or 1}")
        return Budget(trials=int(amount))
    return Budget(gpu_hours=amount) if unit == "gpuh" else Budget(seconds=amount * SECONDS[unit])


@dataclass(frozen=True)
class SearchRequest:
    """One `antiphon search`, as the user typed it."""

    recipe: Recipe
    command: str
    storage: str = "runs"
    tracking: str = field(default="", repr=False)  # may hold a password
    address: str = ""
    workers: int = 1  # of a trial; several make each trial a Ray Train run
    wait_s: float = 0.0  # how long to wait for a cluster that holds them
    slots: int = 0  # trials at once; 0: as many as the cluster holds
    budget: str = ""  # "24", "30m", "2h", "4gpuh"; empty: the recipe's number of trials
    search_id: str = ""
    resume: str = ""  # id of a search to resume, or "auto": the one called `search_id`, created where there is none
    finals: bool = True
    full: int = 0  # trials that are trained once more at full length, to see whether their ranking holds there

    def repeat_options(self, uri: str) -> str:
        """The options of a command that repeats this search, stored at `uri`, beside it; for a shell."""
        options = placement_options(uri, tracking=self.tracking, address=self.address, workers=str(self.workers))
        options += ["--slots", str(self.slots)] if self.slots else []
        options += ["--budget", self.budget] if self.budget else []
        options += [] if self.finals else ["--no-finals"]
        return shlex.join([*options, *(["--full", str(self.full)] if self.full else [])])
