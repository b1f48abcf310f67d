"""Checks before the first step, on all workers together: the data, and the recipe's mistakes in models."""

import torch

from workloads.config.recipe import Recipe
from workloads.data.prepare import PreparedData, prepare
from workloads.data.splits import require_events, require_labels, require_scorable
from workloads.data.unscored import require_no_scores
from workloads.distill.schedule import Phase, label_learners, own_steps
from workloads.distill.store_checks import check_stores
from workloads.distill.stores_of_run import StoresOfRun, open_stores
from workloads.models.buildable import require_buildable
from workloads.models.compiling import require_compiler
from workloads.models.initial_weights import build_initial_tagger, require_ready_to_teach
from workloads.runtime.opener import Opener
from workloads.runtime.placement import WorkerGroup


def prepare_run(
    recipe: Recipe, phases: tuple[Phase, ...], everyone: WorkerGroup, device: torch.device, files: Opener
) -> tuple[PreparedData, StoresOfRun, dict[str, tuple[str, ...]]]:
    """The run's data and stores, and by model the tensors that its `init` does not provide. Every worker must call it
    once.

    Every model is built once to find mistakes in it, since the first phase may not need it. Raises ValueError on all
    workers for a mistake that any of them finds (a file may be missing on one node only): otherwise the others would
    wait for that worker for ever.
    """
    mistake, fingerprint, digests, steps = "", "", dict[str, str](), own_steps(phases)
    newly_initialised: dict[str, tuple[str, ...]] = {}
    try:
        if recipe.train.compile:
            require_compiler(device)
        require_buildable(recipe)  # before clips are decoded
        prepared = prepare(recipe, files, model_tags=check_stores(recipe, files), tags_of="store")
        if not prepared.dataset.has_labels:
            require_no_scores(recipe)
        require_scorable(prepared.dataset, prepared.splits, recipe.data, test=recipe.train.score_test)
        require_labels(prepared.dataset, prepared.splits, label_learners(phases))
        require_events(prepared.splits, [name for name, model in recipe.models.items() if model.frame_labels])
        stores = open_stores(recipe, prepared.dataset, prepared.splits.train, prepared.cache, files)
        fingerprint, digests = prepared.dataset.fingerprint(), stores.digests()
        for name in recipe.models:
            tagger = build_initial_tagger(recipe, name, tags=prepared.dataset.tags, files=files)
            newly_initialised[name] = tagger.newly_initialised
            if not steps[name]:
                require_ready_to_teach(tagger, name)
    except ValueError as error:
        mistake = str(error)
    _require_agreement(everyone.gather((mistake, fingerprint, digests)))
    return prepared, stores, {name: tensors for name, tensors in newly_initialised.items() if tensors}


def _require_agreement(results: list[tuple[str, str, dict[str, str]]]) -> None:
    """ValueError where any worker found a mistake, or the data's fingerprints or the stores differ between workers."""
    for mistake, _, _ in results:
        if mistake:
            raise ValueError(mistake)
    for edge in results[0][2]:
        if len({digests[edge] for _, _, digests in results}) > 1:
            raise ValueError(f"edges {edge}: the workers read different stores under this address; copy one to all")
    if len({fingerprint for _, fingerprint, _ in results}) > 1:
        raise ValueError("data.root: the workers read different clips; compare `antiphon data check` on their nodes")
