"""A run's data, ready to train on: clips read, decoded once, the broken ones set aside, the rest cut into splits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workloads.config.recipe import Recipe
from workloads.data.cache import Broken, ClipCache, check_share
from workloads.data.clips import Corpus, Splits, split
from workloads.data.manifest import read_corpus
from workloads.models.compiling import require_compiler
from workloads.models.initial_weights import load_initial, require_ready
from workloads.models.tagger import Tagger, build_tagger
from workloads.runtime.opener import Opener
from workloads.runtime.session import Session, gather


@dataclass(frozen=True)
class Prepared:
    """Corpus (without its broken clips), splits, and the cache that holds every clip at the run's rate."""

    recipe: Recipe
    corpus: Corpus
    splits: Splits
    cache: ClipCache
    broken: tuple[Broken, ...]

    def summary(self) -> dict[str, Any]:
        """What the report says about the data."""
        return {
            "fingerprint": self.corpus.fingerprint(),
            "tags": list(self.corpus.tags),
            "labels": self.corpus.labels,
            "clips": {name: len(getattr(self.splits, name)) for name in ("train", "val", "test")},
            "quarantined": [vars(broken) for broken in self.broken],
        }

    def make_tagger(self, name: str, files: Opener) -> Tagger:
        """A model of the recipe with its first weights, which depend on the run's seed, its name and `init` only."""
        recipe, model = self.recipe, self.recipe.models[name]
        tagger = build_tagger(
            model,
            name=name,
            tags=self.corpus.tags,
            labels=recipe.data.labels,
            clip_seconds=recipe.data.clip_seconds,
            clip_rate=recipe.rate,
            seed=recipe.train.seed,
        )
        if model.init:
            load_initial(tagger, name, files)
        return tagger


def prepare(recipe: Recipe, files: Opener, *, rate: int | None = None) -> Prepared:
    """Read and decode the recipe's data set, at the rate its models need unless another is given.

    Raises ValueError for metadata that cannot be read, an unknown test fold, or too many broken clips.
    """
    data = recipe.data
    corpus = read_corpus(data, files)
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate or recipe.rate, limit_gb=data.cache_gb)
    broken = cache.prepare(corpus.clips, data, files)
    check_share(broken, len(corpus.clips), data.max_broken_share)
    lost = {entry.clip_id for entry in broken}
    corpus = replace(corpus, clips=tuple(clip for clip in corpus.clips if clip.clip_id not in lost))
    return Prepared(recipe, corpus, split(corpus, data), cache, tuple(broken))


def prepare_together(
    recipe: Recipe, own_steps: dict[str, int], session: Session, files: Opener
) -> tuple[Prepared, dict[str, tuple[str, ...]]]:
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
        fingerprint = prepared.corpus.fingerprint()
        for name in recipe.models:
            tagger = prepared.make_tagger(name, files)
            afresh[name] = tagger.started_afresh
            if not own_steps[name]:
                require_ready(tagger, name)
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
