"""What a study consists of, fixed before its first run: each method's recipe, and a run for each fold and seed.

Trains nothing and reads no results. `plan_study` builds a plan from a study; `store.py` stores it, and `plan_of` reads
it again. A plan holds whole recipes: it can be run where the files are not that the study was built from.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.recipes.loader import load_recipe, load_study, parse, resolve, tables_of, with_options
from orchestrator.recipes.merge import merge
from orchestrator.runs.resume import differences
from orchestrator.study.fixed import compared_models, refuse_fixed, require_own_steps
from orchestrator.study.methods import Values, control_values, lacking_models, standard_values
from workloads.config.recipe import Recipe, restore
from workloads.config.study import CONTROL, MAX_RUNS, Method, Study
from workloads.runtime.json_files import parse_json


@dataclass(frozen=True)
class PlannedMethod:
    """A method of a study: its recipe, without fold and seed, and the models in which it is compared."""

    name: str
    recipe: Recipe
    students: tuple[str, ...]  # models of the control that it teaches; all where it teaches nobody; none of the control


@dataclass(frozen=True)
class Member:
    """One run of a study."""

    method: str
    fold: int
    seed: int


@dataclass(frozen=True)
class StudyPlan:
    """A study with its methods, the control first; those of its methods that are left out, with the reason."""

    study: Study
    methods: dict[str, PlannedMethod]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def members(self) -> list[Member]:
        """All runs in the order in which they begin: every method on every fold before the next seed."""
        return [
            Member(method, fold, seed)
            for seed in self.study.seeds
            for fold in self.study.folds
            for method in self.methods
        ]

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the control, which methods teach."""
        return tuple(self.methods[CONTROL].recipe.models)

    @property
    def labels(self) -> str:
        return self.methods[CONTROL].recipe.data.labels

    def recipe(self, member: Member) -> Recipe:
        """What a run trains; ValueError where the recipe cannot have its fold."""
        recipe = self.methods[member.method].recipe
        data, train = replace(recipe.data, test_fold=member.fold), replace(recipe.train, seed=member.seed)
        return replace(recipe, data=data, train=train)

    def stopping_rule(self) -> str:
        """How many runs there will be, and what ends the study, in one sentence."""
        study = self.study
        return (
            f"{len(self.methods)} methods x {_counted(study.folds, 'test fold')} x {_counted(study.seeds, 'seed')} = "
            f"{len(self.members)} runs, {study.steps:,} own steps of each model in every method; the study ends when "
            "all have ended, and no score stops it, adds a run or leaves one out"
        )

    def as_json(self) -> "StoredPlan":
        """The plan as values that JSON can hold; `plan_of` is the inverse."""
        methods: dict[str, StoredMethod] = {
            name: {"students": list(method.students), "recipe": resolve(method.recipe)}
            for name, method in self.methods.items()
        }
        return {"study": asdict(self.study), "methods": methods, "left_out": self.left_out}


def run_id(study_id: str, member: Member) -> str:
    """The id of a run of a study, which follows from the study."""
    return f"{study_id}-{member.method}-fold{member.fold}-seed{member.seed}"


class StoredMethod(TypedDict):
    """A method of a stored plan."""

    students: list[str]
    recipe: dict[str, Any]


class StoredPlan(TypedDict):
    """A plan as `as_json` describes it; study.json has more keys."""

    study: dict[str, Any]
    methods: dict[str, StoredMethod]
    left_out: dict[str, str]


def load_plan(name_or_path: str, settings: list[str] | None = None) -> StudyPlan:
    """The plan of a shipped study or a file, or the stored plan in a .json file; `settings` change all its recipes."""
    path = Path(name_or_path)
    if path.suffix == ".json" and path.is_file():
        content = path.read_bytes()
        if "study" in parse_json(content, name_or_path, dict[str, Any]):
            refuse_fixed(tables_of(settings or []), "--set")
            plan = plan_of(parse_json(content, name_or_path, StoredPlan))
            recipes = {name: with_options(method.recipe, settings or []) for name, method in plan.methods.items()}
            return _plan_of_recipes(plan.study, recipes, plan.left_out)
    return plan_study(load_study(name_or_path), settings)


def plan_of(values: StoredPlan) -> StudyPlan:
    """The plan that `as_json` described; ValueError where the values are none, also of a file that was edited.

    `students`, which follow from the recipes, are stored for readers.
    """
    recipes = {name: parse(method["recipe"]) for name, method in values["methods"].items()}
    return _plan_of_recipes(restore(Study, values["study"]), recipes, values["left_out"])


def _plan_of_recipes(study: Study, recipes: dict[str, Recipe], left_out: dict[str, str]) -> StudyPlan:
    if CONTROL not in recipes:
        raise ValueError(f"methods: must have {CONTROL}, with which all others are compared")
    judged, methods = tuple(recipes[CONTROL].models), dict[str, PlannedMethod]()
    for name, recipe in recipes.items():
        try:
            methods[name] = _planned(study, name, recipe, judged)
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
    return StudyPlan(study, methods, left_out)


def plan_study(study: Study, settings: list[str] | None = None) -> StudyPlan:
    """The plan of a study; `settings` (`a.b=value`) change its recipe for all methods.

    A standard method that the recipe's models cannot make is left out, with the reason. Raises ValueError for a recipe
    or a method of the study's own that is none, for a mistake in the study's keys or settings, and where a model's own
    steps would not be those of the control.
    """
    refuse_fixed(study.settings, "settings:")
    refuse_fixed(tables_of(settings or []), "--set")
    base = resolve(load_recipe(study.recipe, settings, tables=study.settings))
    values, left_out = {CONTROL: control_values(study, base)}, dict[str, str]()
    for standard in study.standard:
        if reason := lacking_models(study, base):
            left_out[standard] = reason
        else:
            values |= dict(standard_values(standard, study, base))
    for name, method in study.methods.items():
        if name in values or name in left_out:
            raise ValueError(f"methods.{name}: is the name of a standard method of this study; choose another")
        refuse_fixed(method.settings, f"methods.{name}.settings:", may_schedule=True)
        if (start := values.get(method.like)) is None:
            _require_standard(name, method, values, left_out)
            left_out[name] = f"like = {method.like!r}: is left out"
            continue
        about = {"about": method.about or f"{method.like}, with settings of the study's own"}
        values[name] = merge(start, method.settings) | about
    methods = dict[str, PlannedMethod]()
    for name, own in values.items():
        try:
            recipe = parse(own | {"name": f"{study.name}-{name}"})
            methods[name] = _planned(study, name, recipe, judged=tuple(values[CONTROL]["models"]))
        except ValueError as error:
            if name in study.methods or name == CONTROL:
                raise ValueError(f"methods.{name}: {error}") from None
            left_out[name] = str(error)
    runs = len(methods) * len(study.folds) * len(study.seeds)
    if runs > MAX_RUNS:
        raise ValueError(f"study {study.name}: {len(methods)} methods make {runs:,} runs; at most {MAX_RUNS:,}")
    return StudyPlan(study, methods, left_out)


def _require_standard(name: str, method: Method, values: dict[str, Values], left_out: dict[str, str]) -> None:
    """ValueError for a method that begins from one which the study does not have, also not left out."""
    if not any(method.like == other or method.like.startswith(f"{other}-") for other in left_out):
        raise ValueError(
            f"methods.{name}.like = {method.like!r}: must be a method named before it: {', '.join(values)}"
        )


def _planned(study: Study, name: str, recipe: Recipe, judged: tuple[str, ...]) -> PlannedMethod:
    students = compared_models(name, recipe, judged)
    require_own_steps(study, recipe, judged if name == CONTROL else students)
    return PlannedMethod(name, recipe, students)


def without(plan: StudyPlan, reasons: dict[str, str]) -> StudyPlan:
    """The plan without methods for which there is a reason to leave them out."""
    methods = {name: method for name, method in plan.methods.items() if name not in reasons}
    return replace(plan, methods=methods, left_out=plan.left_out | reasons)


def changed(plan: StudyPlan, stored: StudyPlan) -> Iterator[str]:
    """How a plan differs from the one that a study was started with: `what: was, now`. Where the data lies may."""
    for key in ("folds", "seeds", "steps"):
        was, now = getattr(stored.study, key), getattr(plan.study, key)
        if was != now:
            yield f"{key}: {was}, now {now}"
    if list(plan.methods) != list(stored.methods):
        yield f"methods: {', '.join(stored.methods)}, now {', '.join(plan.methods)}"
        return
    for name, method in plan.methods.items():
        for key, was, now in differences(method.recipe, resolve(stored.methods[name].recipe)):
            yield f"{key} of {name}: {was}, now {now}"


def _counted(numbers: tuple[int, ...], noun: str) -> str:
    """2 seeds (0, 1)"""
    return f"{len(numbers)} {noun}{'' if len(numbers) == 1 else 's'} ({', '.join(map(str, numbers))})"
