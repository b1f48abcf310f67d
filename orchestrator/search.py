"""A search: trials of one recipe until the budget is spent, then the best are held against a control.

What a trial is and does are `trial.py` and `climb.py`, who proposes is `proposals.py`, how Ray Tune runs them is
`tuning.py`, what is kept is `search_files.py`; here is what happens one after the other.
"""

import itertools
import math
import os
import secrets
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator import results, storage, tracking
from orchestrator.attempts import Driver, beating, take_over
from orchestrator.budget import Budget, parse_budget
from orchestrator.family import NAMES
from orchestrator.joining import connect, join_stack
from orchestrator.patience import say
from orchestrator.proposals import num_trials, planned
from orchestrator.recipe import resolve
from orchestrator.results import Place
from orchestrator.run import absolute, on_sigterm, refuse_passwords, wait_for_tracking
from orchestrator.runs import differences, place_of
from orchestrator.search_files import Task, begin, facts_of, known_trials, reopen, write_cluster
from orchestrator.search_summary import best_first, outcome_of, repeated, winner_so_far
from orchestrator.trial import judged_models, num_slices, rungs, searched, trial_recipe, without_teachers
from workloads import roles
from workloads.clips import read_corpus, split
from workloads.config import Recipe
from workloads.space import Choices, Search
from workloads.spool import Spool

if TYPE_CHECKING:
    from orchestrator.tuning import Crew


MOST_CORNERS = 512  # of a space, that are tried for mistakes before anything starts
WAITING = 0.01  # CPUs of a trial that waits for its workers


@dataclass(frozen=True)
class SearchRequest:
    """One `antiphon search`, as the user typed it."""

    recipe: Recipe
    command: str
    storage: str = "runs"
    tracking: str = ""
    address: str = ""
    workers: int = 1  # of a trial; several make it a Ray Train run of its own
    slots: int = 0  # trials at once; 0: as many as the cluster holds
    budget: str = ""  # "24", "30m", "2h", "4gpuh"; empty: the recipe's number of trials
    search_id: str = ""
    resume: str = ""
    finals: bool = True
    full: int = 0  # trials that are learned again at full length: does the ranking hold there?


def check(request: SearchRequest) -> Budget:
    """Refuse the user's mistakes before anything starts: every corner of the space must make a recipe that works."""
    recipe, search = request.recipe, searched(request.recipe)
    refuse_passwords(storage=request.storage, tracking=request.tracking)
    budget = parse_budget(request.budget) if request.budget else Budget()
    if budget.gpu_hours and recipe.train.device != "cuda":
        raise ValueError(f"--budget {request.budget!r}: GPU-hours need train.device = 'cuda'; give trials or time")
    if request.search_id and request.resume:
        raise ValueError("--search-id names a new search, --resume an old one; leave one of the two out")
    if request.slots < 0:
        raise ValueError(f"--slots {request.slots}: must be 1 or more")
    if request.full and (request.full < 2 or search.share == 1):
        raise ValueError(
            f"--full {request.full}: takes 2 trials or more, to rank them again, and search.share = {search.share:g} "
            "below 1; or leave it out"
        )
    known = planned(search, budget.trials)  # refuses a budget that no grid or population has
    if request.slots and search.pauses:
        raise ValueError(
            f"--slots {request.slots}: trials that wait for one another (pbt, hyperband) take all of the cluster; "
            "leave it out"
        )
    if request.workers > 1 and search.rungs > 1:
        raise ValueError(
            f"search.rungs = {search.rungs}: must be 1 with --workers {request.workers}; leave one of the two out"
        )
    if request.workers < 1 or recipe.train.shards % request.workers:
        raise ValueError(f"--workers {request.workers}: train.shards = {recipe.train.shards} must divide among them")
    corners = known or _corners(search)
    trials = [trial_recipe(recipe, settings) for settings in corners]
    for made in trials:
        judged_models(search, made)
        if request.finals:
            _require_control(made)
    if request.finals:
        _require_slices(recipe)
    for settings in corners if request.full else ():
        trial_recipe(recipe, settings, whole=True)
    if search.scheduler != "none":
        _require_equal_rungs(search, trials)
    if len({tuple(roles.own_steps(roles.plan(made)).items()) for made in trials}) > 1:
        say("note: not all trials take equally many steps of each model, so their scores tell that too")
    return budget


def _require_slices(recipe: Recipe) -> None:
    """ValueError where whoever was chosen could not be judged on slices that did not choose it."""
    search, there = searched(recipe), num_slices(recipe)
    need = search.slices + search.repeats * (2 if search.finalists > 1 else 1)
    if need > there:
        raise ValueError(
            f"search.repeats = {search.repeats}: with search.slices = {search.slices} and search.finalists = "
            f"{search.finalists} it takes {need} validation slices for each repeat to have one that chose nobody, and "
            f"data.val_share = {recipe.data.val_share:g} makes {there}; lower one of them, or add --no-finals"
        )


def _require_equal_rungs(search: Search, trials: list[Recipe]) -> None:
    """ValueError where the scheduler would compare trials whose models have not taken equally many own steps."""
    for number in range(search.rungs - 1):
        first: dict[str, int] = {}
        for made in trials:
            step = rungs(made, search)[number]
            own = roles.own_steps(roles.plan(made), until=step)
            first = first or own
            if own != first:
                said = [", ".join(f"{name} {count}" for name, count in sorted(each.items())) for each in (first, own)]
                raise ValueError(
                    f"search.scheduler = {search.scheduler!r}: at rung {number + 1} of {search.rungs} the models of "
                    f"some trials have taken {said[0]} own steps and those of others {said[1]}, so who is stopped "
                    "would hang on that; let every schedule give equal steps up to there, or set it to 'none'"
                )


def _require_control(made: Recipe) -> None:
    """ValueError where the schedule cannot do without teachers, so that nothing could be held against the winner."""
    try:
        roles.plan(without_teachers(made))
    except ValueError as error:
        raise ValueError(
            f"schedule.kind = {made.schedule.kind!r}: without edges there is no control ({error}); --no-finals "
            "searches without one"
        ) from None


def _corners(search: Search) -> list[dict[str, Any]]:
    """Settings that show whether the space makes recipes: all its corners; of very many, every end by itself."""
    ends = {
        place: values.choices if isinstance(values, Choices) else (values.low, values.high)
        for place, values in search.space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_CORNERS:
        return [dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())]
    first, last = ({place: values[end] for place, values in ends.items()} for end in (0, -1))
    return [first, last, *(first | {place: value} for place, values in ends.items() for value in values)]


def search(request: SearchRequest) -> dict[str, Any]:
    """The whole search; returns its outcome, the object that --json prints. ValueError for the user's mistakes."""
    budget = check(request)
    request = replace(request, recipe=absolute(request.recipe))
    _require_data(request.recipe)
    storage.probe(request.storage)
    began, place, driver = time.time(), _open(request), Driver()
    take_over(place.uri, driver)  # two drivers of one search would train everything twice
    place.folder.mkdir(parents=True, exist_ok=True)
    with beating(place.uri, driver):
        return _drive(request, place, budget, began=began)


def _require_data(recipe: Recipe) -> None:
    """ValueError where the data cannot be read or split: every trial would find that out by itself."""
    corpus, slices = read_corpus(recipe.data, storage.FsspecFiles()), num_slices(recipe)
    for number in range(slices):
        split(corpus, replace(recipe.data, val_slice=number))


def _drive(request: SearchRequest, place: Place, budget: Budget, *, began: float) -> dict[str, Any]:
    """Trials, then finals, then what came of them."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # as in run.py
    address = join_stack(request.address)  # before Ray is imported: it reads its token's place then
    import ray

    from orchestrator import tuning

    train, workers, search = request.recipe.train, request.workers, searched(request.recipe)
    trial = {"CPU": float(train.threads)} | ({"GPU": 1.0} if train.device == "cuda" else {})
    whole = trial
    if workers > 1:  # Ray Train places its workers itself; Tune sees only the trial that waits for them
        trial = {"CPU": WAITING}
        whole = {"CPU": workers + WAITING} | ({"GPU": float(workers)} if train.device == "cuda" else {})
    joined = connect(ray, address, at_least=math.ceil(whole["CPU"]))
    try:
        # workers of one trial may lie on several nodes, a trial of one process does not
        slots = tuning.slots([joined.resources] if workers > 1 else joined.nodes, whole, request.slots)
        joined.require_seen(ray, storage.join(place.uri, "search.json"))
        write_cluster(place.uri, slots=slots, dashboard=joined.dashboard, trials=num_trials(search, budget.trials))
        with Spool(place.spool) as spool:
            spool.append(_search_record(request, place))
            replayer = tracking.start_replayer(place.spool, place.tracking, log=place.folder / "tracking.log")
            replayer.wait_started()
            reopen(place.uri)
            crew = tuning.Crew(request.recipe, place.uri, spool, resources=trial, slots=slots, workers=workers)
            with on_sigterm(_interrupt):
                outcome = _work(request, place, crew, budget, began=began)
            spool.append({"kind": "end", "status": outcome["status"], "error": "", "mistake": False})
            results.share_spool(place)
    finally:
        ray.shutdown()
    wait_for_tracking(replayer)  # it knows which MLflow runs the report can link to
    if outcome["status"] != "preempted":
        _write_report(place)
    return outcome


def _work(request: SearchRequest, place: Place, crew: "Crew", budget: Budget, *, began: float) -> dict[str, Any]:
    """All that is to be learned, and what came of it; where it was interrupted, how to go on."""
    try:
        known = known_trials(place.uri)
        spent = crew.run_trials(known, budget)
        finals = _finals(request.recipe, place.uri, crew) if request.finals else []
        finals += _at_full_length(place.uri, crew, request.full) if request.full else []
    except KeyboardInterrupt:
        return {"search_id": place.run_id, "status": "preempted"}
    told = [task.number for task, result in known if result is not None]
    return outcome_of(place, request.recipe, finals, slots=crew.slots, spent=spent, began=began, told=told)


def _interrupt() -> None:
    """SIGTERM as Ctrl-C: what is committed stays, and the rest is learned when the search goes on."""
    raise KeyboardInterrupt


def _write_report(place: Place) -> None:
    """The search's page, as `antiphon report` writes it, beside what it tells of."""
    from orchestrator.search_report import write_search_report
    from orchestrator.trials import read_search

    report, names = place.folder / "report.html", place.folder / NAMES
    if not storage.is_local(place.uri) and names.exists():
        storage.put_text(storage.join(place.uri, NAMES), names.read_text())
    write_search_report(read_search(place.uri), report)
    if not storage.is_local(place.uri):
        storage.put_text(storage.join(place.uri, "report.html"), report.read_text())


def _open(request: SearchRequest) -> Place:
    """The place of a new search, or of the one to go on with; ValueError where it is another search, or is none."""
    search_id = request.resume or request.search_id
    if not search_id:
        search_id = f"{request.recipe.name}-search-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    place = place_of(request.storage, search_id, request.tracking)
    facts = {
        "search_id": search_id,
        "created": time.time(),
        "command": request.command,
        "recipe": resolve(request.recipe),
        "tracking": place.tracking,
    }
    if request.resume:
        found = differences(request.recipe, facts_of(place.uri)["recipe"])
        if found:
            key, was, now = found[0]
            raise ValueError(
                f"--resume {search_id!r}: it began with {key} = {was}, and this command says {now}; repeat the command "
                "it began with, or start a new search"
            )
    elif not begin(place.uri, facts):
        raise ValueError(f"--search-id {search_id!r}: there is such a search; `--resume {search_id}` goes on with it")
    return place


def _search_record(request: SearchRequest, place: Place) -> dict[str, Any]:
    """What the search's spool begins with: the parent of its trials in MLflow."""
    search = searched(request.recipe)
    return {
        "kind": "run",
        "run_id": place.run_id,
        "experiment": "antiphon",
        "name": f"{request.recipe.name} search",
        "params": {key: str(value) for key, value in vars(search).items() if key != "space"},
        "tags": {
            "command": request.command,
            "storage": place.uri,
            **{f"space.{key}": str(vars(value)) for key, value in search.space.items()},
        },
    }


def _finals(recipe: Recipe, home: str, crew: "Crew") -> list[Task]:
    """Find the best of the finalists, and hold it against the same without teachers; returns these last tasks.

    Whoever was chosen by some seeds and slices looks better there than it is: what comes after a choice is judged by
    other seeds, on slices that chose nobody. The test fold is scored for one winner only: once there is one, trials
    that come later do not take its place.
    """
    search, best = searched(recipe), best_first(home)
    if not best:
        return []
    finalists, numbers = best[: search.finalists], range(1, search.repeats + 1)
    chosen = winner_so_far(home)
    if len(finalists) > 1:
        again = [_repeat("finalist", found, recipe, number) for found in finalists for number in numbers]
        if chosen is None:
            crew.run_listed(again)
            finalists = repeated(home, again)
        numbers = range(search.repeats + 1, 2 * search.repeats + 1)
    winner = chosen or (finalists[0] if finalists else None)
    if winner is None:  # no finalist came to its end with another seed
        return []
    tasks = [_repeat(kind, winner, recipe, number) for kind in ("winner", "control") for number in numbers]
    crew.run_listed(tasks)
    return tasks


def _repeat(kind: str, found: dict[str, Any], recipe: Recipe, number: int) -> Task:
    """A trial's settings for the `number`th time, counted from 1: another seed, and a slice that did not choose it."""
    slices, used = num_slices(recipe), searched(recipe).slices
    slice_ = used + number % (slices - used) if used < slices else number % slices
    return Task(kind, found["number"], found["settings"], seed=recipe.train.seed + number, slice=slice_)


def _at_full_length(home: str, crew: "Crew", wanted: int) -> list[Task]:
    """Trials from the best to the worst that came to their end, evenly spread, once more over the whole schedule."""
    best = best_first(home)
    places = sorted({round(place * (len(best) - 1) / (wanted - 1)) for place in range(wanted)}) if best else []
    tasks = [Task("full", best[place]["number"], best[place]["settings"]) for place in places]
    crew.run_listed(tasks)
    return tasks
