"""What a search found, in plain words that claim no more than its numbers do. Draws nothing, knows no page."""

from dataclasses import dataclass

from orchestrator.reports.search.formatting import line
from orchestrator.reports.search.snapshot import DONE, FAILED, INTERRUPTED, RUNNING, STOPPED, Search

NOTHING = "-"


@dataclass(frozen=True)
class Verdict:
    """The answer: how far the search is, the best settings, and whether they beat the control."""

    tone: str  # done, failed or unfinished: the colour beside it
    state: str
    best: str
    control: str


def verdict(search: Search, now: float) -> Verdict:
    """The page's headline at `now`, in seconds since the epoch."""
    status = search.outcome["status"] if search.outcome else "unfinished"
    tone = status if status in ("done", "failed") else "unfinished"
    return Verdict(tone, _state(search, now), _best(search), _control(search))


def _state(search: Search, now: float) -> str:
    counts = [(DONE, "finished"), (STOPPED, "stopped early"), (FAILED, "failed")]
    counts += [(RUNNING, "running"), (INTERRUPTED, "interrupted")]
    parts = [f"{len(search.of_status(name))} {word}" for name, word in counts if search.of_status(name)]
    told = f" ({', '.join(parts)})." if parts else "."
    if search.outcome is None:
        over = sum(trial.over for trial in search.trials)
        said = f"{over} of at most {search.planned_trials} trials are over{told}"
        if search.active_until(now) < now:
            return f"Without news for {duration(now - search.last_news)}: it may have been killed. {said}"
        return f"Running. {said}"
    return f"{search.outcome['status'].capitalize()}: {plural(len(search.trials), 'trial')}{told}"


def _best(search: Search) -> str:
    ranked = search.ranked
    if not ranked:
        return "No trial has come to its end with a score, so there are no best settings."
    best = ranked[0]
    winner = (search.outcome or {}).get("winner")
    if winner and winner.get("number", best.number) != best.number:
        chosen = f"trial {winner['number']} ({line(search, winner['settings'])})"
        if any(trial.kind == "finalist" and trial.number == best.number for trial in search.finals):
            return f"Best settings: {chosen}. It won over several seeds; on one seed trial {best.number} was ahead."
        late = f"Trial {best.number}, which is ahead of it on one seed, came later and was not held against it"
        return f"Best settings: {chosen}. {late}: the test fold is scored for one winner only."
    word = "Best settings" if search.outcome else "Best settings so far"
    if search.settings["searcher"] == "pbt":  # which course led there is in its result
        word = "The best member's last settings" + ("" if search.outcome else " so far")
    found = f"{line(search, best.settings)} (trial {best.number}, {search.metric} {score(best.objective)}"
    return f"{word}: {found}{', lower is better).'}"


def _control(search: Search) -> str:
    """Whether the winner beats its control; the difference is of the objective, so less than zero is better."""
    compared = (search.outcome or {}).get("comparison")
    if search.outcome is None:
        return "Not established yet: the winner meets its control, the same models without teachers, at the end."
    if compared is None:
        return "Not established: no winner was compared with its control, the same models without teachers."
    difference, low, high = compared["difference"], compared["low"], compared["high"]
    side = "below" if difference < 0 else "above"
    size = score(abs(difference)) if abs(difference) >= 1e-4 else "less than 0.0001"
    what = f"the winner's {search.metric} is {size} {side} its control's without teachers"
    if low is None or high is None:
        return f"Not established: {what}, but with {plural(compared['pairs'], 'pair')} of seeds there is no interval."
    what += f" (mean of {plural(compared['pairs'], 'pair')} of seeds, 95 % interval {low:+.4f} to {high:+.4f})"
    if not compared["excludes_control"]:
        return f"Not established: {what}. The interval includes zero, so the difference may be chance."
    if difference < 0:
        return f"Established: {what}. The interval excludes zero: teaching helps here."
    return f"The control is better: {what}. The interval excludes zero: teaching harms here."


def score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def amount(value: float | None) -> str:
    """A second objective with a unit's prefix: 541 M."""
    if value is None:
        return NOTHING
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return NOTHING
    if seconds >= 5400:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")
