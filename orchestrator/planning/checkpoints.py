"""How many checkpoints a run writes and how many bytes of tensors each holds. Depends on phases and sizes only.

A run may have some million checkpoints: they are counted phase by phase, never listed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from workloads.config.controls import begins_as_copy
from workloads.config.recipe import Recipe
from workloads.distill.schedule import Phase
from workloads.models.size import Size


def steps_by_phase(phases: tuple[Phase, ...], until: int) -> list[tuple[Phase, int]]:
    """The phases that the first `until` steps reach, with the number of these steps in each."""
    return [(phase, min(phase.end, until) - phase.start) for phase in phases if phase.start < until]


def validations_in(phase: Phase, until: int, every: int) -> int:
    """Number of validations of a phase's students up to step `until` of it: every `every` steps, and at its end."""
    return until // every - phase.start // every + (until == phase.end and until % every > 0)


def planned_checkpoints(
    recipe: Recipe, phases: tuple[Phase, ...], sizes: dict[str, Size], *, until: int
) -> Iterator[tuple[int, int]]:
    """(bytes of one, number of them) for each group of consecutive checkpoints of one size, in the order of steps.

    One is written every `train.checkpoint_every` steps, at each phase's end, and after step `until`. It holds the
    weights of every model that a phase has needed so far, the optimizer state of those that have trained, their
    averages, and the snapshots that teach in the current phase.
    """
    every, eval_every = recipe.train.checkpoint_every, recipe.train.eval_every
    needed: set[str] = set()
    trained: set[str] = set()
    earlier: Counter[str] = Counter()  # validations of each model in the phases before
    for phase, steps in steps_by_phase(phases, until):
        needed.update(phase.needs)
        for name in set(phase.trains) - trained:
            if begins_as_copy(recipe, name):  # with its student's averages
                earlier[name] = earlier[recipe.models[name].control_of]
        trained.update(phase.trains)
        last = phase.start + steps
        snapshots = {edge.teacher for edge in phase.edges if edge.source == "snapshot"}
        fixed = sum(sizes[name].weight_bytes for name in (*needed, *snapshots))
        fixed += sum(sizes[name].optimizer_bytes for name in trained)
        for begin, end in pairwise(_borders(recipe, phase, last, earlier)):
            if number := end // every - begin // every + (end == last and end % every > 0):
                now = earlier + Counter(dict.fromkeys(phase.trains, validations_in(phase, end, eval_every)))
                averages = sum(sizes[name].weight_bytes * _averages(recipe, name, now[name]) for name in needed)
                yield fixed + averages, number
        earlier.update(dict.fromkeys(phase.trains, validations_in(phase, last, eval_every)))


def checkpoint_bytes(recipe: Recipe, phases: tuple[Phase, ...], sizes: dict[str, Size], step: int) -> int:
    """Bytes of the tensors in a checkpoint written after `step` steps."""
    *_, (last, _) = planned_checkpoints(recipe, phases, sizes, until=step)
    return last


def sum_of_largest(groups: Sequence[tuple[int, int]], number: int) -> int:
    """Bytes of the `number` largest checkpoints of such groups."""
    total = 0
    for size, count in sorted(groups, reverse=True):
        total += size * min(count, number)
        number -= min(count, number)
    return total


def _averages(recipe: Recipe, name: str, validations: int) -> int:
    """How many further copies of its weights a model's average keeps after so many validations."""
    average = recipe.models[name].average
    return {"none": 0, "ema": 1, "best": min(average.best, validations)}[average.kind]


def _borders(recipe: Recipe, phase: Phase, last: int, validations: Counter[str]) -> list[int]:
    """Steps of a phase, from its start to `last`, between which checkpoints do not change in size.

    They grow where a validation adds weights to an average of the best, until that has as many as it keeps.
    """
    borders, every = {phase.start, last}, recipe.train.eval_every
    for name in phase.trains:
        average = recipe.models[name].average
        if average.kind == "best" and (missing := average.best - validations[name]) > 0:
            first = (phase.start // every + 1) * every
            borders |= {last - 1, *range(first - 1, min(last, first + missing * every), every)}
    return sorted(borders)
