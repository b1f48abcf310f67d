"""What all workers of a run find out together before its first step: its data, and mistakes in its models."""

from workloads.config.recipe import Recipe
from workloads.data.prepare import PreparedData, prepare
from workloads.models.compiling import require_compiler
from workloads.models.initial_weights import build_initial_tagger, require_ready_to_teach
from workloads.runtime.opener import Opener
from workloads.runtime.session import Session, gather


def prepare_run(
    recipe: Recipe, own_steps: dict[str, int], session: Session, files: Opener
) -> tuple[PreparedData, dict[str, tuple[str, ...]]]:
    """The run's data, the same for every worker, and what of each model's `init` does not fit it.

    A mistake that one worker alone can see (a file that only its node lacks) is raised by all of them: they would wait
    for it for ever. Every model is built once, for its mistakes: the first phase may come without it.
    """
    mistake, fingerprint = "", ""
    afresh: dict[str, tuple[str, ...]] = {}
    try:
        if recipe.train.compile:
            require_compiler(session.device)
        prepared = prepare(recipe, files)
        fingerprint = prepared.dataset.fingerprint()
        for name in recipe.models:
            tagger = build_initial_tagger(recipe, name, tags=prepared.dataset.tags, files=files)
            afresh[name] = tagger.newly_initialised
            if not own_steps[name]:
                require_ready_to_teach(tagger, name)
    except ValueError as error:
        mistake = str(error)
    answers = gather(session, (mistake, fingerprint))
    for text, _ in answers:
        if text:
            raise ValueError(text)
    if len({fingerprint for _, fingerprint in answers}) > 1:
        raise ValueError(
            "data.root: the workers do not see the same clips; compare `antiphon data check` on their nodes"
        )
    return prepared, {name: dropped for name, dropped in afresh.items() if dropped}
