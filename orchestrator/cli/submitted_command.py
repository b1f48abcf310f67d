"""The command that `antiphon submit` is given: parsed and checked here, before anything is sent to a cluster."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.recipes.loader import flatten, load_recipe, load_teach_recipe
from orchestrator.runs.location import location_of
from orchestrator.runs.resume import AUTO, generated_id
from orchestrator.tracking.uri import VARIABLE
from orchestrator.training.inside_job import require_lasting_storage, require_lasting_tracking
from orchestrator.training.request import with_absolute_paths
from orchestrator.training.worker_count import parse_workers
from workloads.config.teach import TeachRecipe
from workloads.runtime.redaction import redacted, require_no_secret

KINDS = ("run", "search", "teach", "study")
# parameters of the commands that a job cannot have, and why
REFUSED = {
    "run_id": "--run-id: the job's run has the job's name; give --id to submit",
    "search_id": "--search-id: the job's search has the job's name; give --id to submit",
    "study_id": "--study-id: the job's study has the job's name; give --id to submit",
    "resume": "--resume: a job goes on with the run or search of its name; give --id to submit",
    "address": "--address: a job works on the cluster that it is submitted to",
    "local": "--local: a job on a cluster runs on Ray; leave it out",
    "dry_run": "--dry-run: nothing would run; leave out submit",
}


@dataclass(frozen=True)
class SubmittedCommand:
    """What a job is to do: a command, its recipe, and its other arguments; its run or search has the job's name."""

    kind: str
    recipe: Mapping[str, Any]  # resolved: settings are in it; of a study its plan
    arguments: Sequence[str]
    name: str
    storage: str
    teacher_runs: Sequence[str] = ()  # URIs of the runs that `teach` trains first


def submitted_command(context: Any, words: Sequence[str], name: str, env: Sequence[str]) -> SubmittedCommand:
    """Parse the words as the command itself would, and check its recipe.

    `context` is the command line's; `env` are the names of variables that the nodes have. Raises ValueError for what
    cannot be in a job or would be lost with it, and the command line's own errors for options that there are not.
    """
    kind, words = (words[0], words[1:]) if words[0] in KINDS else ("run", words)
    command, values, given = parsed_command(context, kind, words)
    recipe = _checked_recipe(kind, values)
    sent = recipe.as_json() if kind == "study" else asdict(recipe)
    _check_as_there(kind, recipe, values)
    storage = "out" if kind == "teach" else "storage"
    name = name or _default_name(kind, recipe, values)
    location_of(".", name, "none")  # refuses what can be no name
    require_no_secret(values["storage"], "--storage")
    require_no_secret(values[storage], f"--{storage}")
    require_lasting_storage(values[storage], f"--{storage}", job=name)
    teacher_runs: list[str] = []
    if kind == "teach" and any(teacher.of_run for teacher in recipe.teachers.values()):
        from orchestrator.teaching.teacher_runs import run_uris

        require_lasting_storage(values["storage"], "--storage", job=name)
        teacher_runs = run_uris(recipe, values["storage"])
    if kind != "teach" and not _in_environment(env):
        require_lasting_tracking(values["tracking"], job=name)
    words = _arguments(command, values, given, env)
    return SubmittedCommand(kind, sent, words, name, values[storage], teacher_runs)


def _default_name(kind: str, recipe: Any, values: Mapping[str, Any]) -> str:
    """A study has a name of its own, with which the same command goes on; so has a store by its address."""
    if kind == "study":
        return str(recipe.study.name)
    return _name_of_store(recipe, values["out"]) if kind == "teach" else generated_id(recipe)


def _name_of_store(recipe: TeachRecipe, out: str) -> str:
    """The same for every command that fills a store: repeated, it is the job of that store."""
    return f"{recipe.name}-{hashlib.sha256(out.rstrip('/').encode()).hexdigest()[:8]}"


def _in_environment(env: Sequence[str]) -> bool:
    """Whether the job has MLflow's address in its environment: that of the nodes, or as `--env` sets it."""
    return any(given.partition("=")[0] == VARIABLE for given in env)


def parsed_command(context: Any, kind: str, words: Sequence[str]) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """The command itself, its parameters, and those of them that are given; ValueError for what a job cannot have.

    `context` is that of any command beside it.
    """
    command = context.parent.command.commands[kind]
    with command.make_context(kind, list(words), parent=context.parent) as parsed:
        values, given = parsed.params, _given(parsed)
    for key in given:
        if key in REFUSED:
            raise ValueError(REFUSED[key])
    return command, values, given


def _given(parsed: Any) -> dict[str, str]:
    """The parameters that the command line or the environment gives -> which of the two."""
    sources = {key: parsed.get_parameter_source(key).name for key in parsed.params}
    return {key: source for key, source in sources.items() if source in ("COMMANDLINE", "ENVIRONMENT")}


def _checked_recipe(kind: str, values: Mapping[str, Any]) -> Any:
    """The recipe with its settings, of a study its plan; ValueError for paths that mean something else elsewhere."""
    if kind == "teach":
        from orchestrator.teaching.job import with_absolute_paths as absolute_teach

        teach = load_teach_recipe(values["teach_recipe"], values["settings"])
        _require_no_relative_path(asdict(teach), asdict(absolute_teach(teach)))
        return teach
    if kind == "study":
        from orchestrator.study.plan import load_plan

        plan = load_plan(values["study"], values["settings"])
        for method in plan.methods.values():
            _require_no_relative_path(asdict(method.recipe), asdict(with_absolute_paths(method.recipe)))
        return plan
    recipe = load_recipe(values["recipe"], values["settings"])
    _require_no_relative_path(asdict(recipe), asdict(with_absolute_paths(recipe)))
    return recipe


def _check_as_there(kind: str, recipe: Any, values: Mapping[str, Any]) -> None:
    """Refuse what the command itself would refuse on the cluster before it reads data; ValueError.

    The cluster is taken to be there. What studies and `teach` check looks at their data, stores and teachers, which
    this machine may not see.
    """
    if kind == "run":
        from orchestrator.training.request import RunRequest, check_request
        from orchestrator.training.seeds import require_seeds

        if values["compare"] is not None:
            recipe = load_recipe(
                values["recipe"], [*(values["settings"] or ()), f"compare={str(values['compare']).lower()}"]
            )
        workers = parse_workers(values["workers"])
        request = RunRequest(
            recipe, "", workers=workers, address=AUTO, patience_s=values["patience"], wait_s=values["wait"]
        )
        check_request(request)
        require_seeds(request, values["seeds"])
    elif kind == "search":
        from orchestrator.search.request import SearchRequest
        from orchestrator.search.validation import check

        own = {key: values[key] for key in ("workers", "slots", "budget", "full")}
        check(SearchRequest(recipe, "", address=AUTO, wait_s=values["wait"], **own))
    elif kind == "study" and (values["slots"] < 0 or values["wait"] < 0):
        name = "slots" if values["slots"] < 0 else "wait"
        raise ValueError(f"--{name} {values[name]:g}: must be 0 or more")


def _require_no_relative_path(recipe: dict[str, Any], absolute: dict[str, Any]) -> None:
    here, everywhere = flatten(recipe), flatten(absolute)
    for key, path in here.items():
        changed = path != everywhere[key]  # so it is a path of a disk; an absolute one may only be written otherwise
        if changed and not path.removeprefix("store:").removeprefix("file://").startswith(("~", "/")):
            raise ValueError(
                f"{key} = {path!r}: is a folder of this machine, and the job runs on another one; give a URI, or an "
                "absolute path that all nodes of the cluster see"
            )


def _arguments(command: Any, values: Mapping[str, Any], given: Mapping[str, str], env: Sequence[str]) -> list[str]:
    """The options that the command was given, one form for each; settings are in the recipe.

    A tracking URI with a secret, or one that the nodes have in their environment, is left to that.
    """
    words: list[str] = []
    for option in command.params:
        key = option.name
        if option.param_type_name != "option" or key not in given or key in ("settings", "as_json"):
            continue
        if key == "tracking" and (_in_environment(env) or redacted(values[key]) != values[key]):
            if not _in_environment(env):
                raise ValueError(
                    f"--tracking {redacted(values[key])!r}: a secret must not travel with a job; set {VARIABLE} in the "
                    f"environment of the cluster's nodes, and give --env {VARIABLE}"
                )
            continue
        if option.is_flag:
            words.append(option.opts[0] if values[key] else option.secondary_opts[0])
        else:
            words += [option.opts[0], str(values[key])]
    return words
