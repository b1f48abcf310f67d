"""Where the models of a run are: which of them share workers, and what the servers of frozen teachers take.

Nothing of it changes what is learned. Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from workloads.config.checked import Checked
from workloads.config.resources import Resources

MAX_ACTORS = 1024
MAX_AHEAD = 1024  # steps that teachers are asked ahead


@dataclass(frozen=True, kw_only=True)
class Service(Checked):
    """The actors that hold frozen teachers under placement = "service"."""

    actors: int = 1
    prefetch: int = 2  # steps that they are asked ahead
    resources: Resources = field(default_factory=Resources)  # of one of them; zeros mean what `train` implies

    def __post_init__(self) -> None:
        self._require_positive("actors", "prefetch")
        self._require(self.actors <= MAX_ACTORS, "actors", f"must be at most {MAX_ACTORS:,}")
        self._require(self.prefetch <= MAX_AHEAD, "prefetch", f"must be at most {MAX_AHEAD:,}")
        if (strategy := self.resources.placement) != "PACK":
            raise ValueError(f"resources.placement = {strategy!r}: is for workers; each actor is alone, leave it out")


def group_models(
    families: Mapping[str, str], controls: Mapping[str, str], split_groups: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    """The models that share workers under placement = "split", in the order of the recipe.

    `families` are those of all models, `controls` a control -> its student, with which it shares workers: it may begin
    as a copy of it. Without `split_groups` models of one family share workers. Raises ValueError where models are named
    twice, not at all or are unknown, and where a single group is left.
    """
    named = [name for group in split_groups for name in group]
    if unknown := [name for name in named if name not in families]:
        raise ValueError(f"split_groups: no model named {unknown[0]!r}; the models are {', '.join(families)}")
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"split_groups: {twice[0]} is named twice; a model is on the workers of one group")
    if control := next((name for name in named if name in controls), ""):
        raise ValueError(f"split_groups: {control} shares workers with {controls[control]}, whose control it is")
    keys = {name: str(number) for number, group in enumerate(split_groups) for name in group} or dict(families)
    groups: dict[str, list[str]] = {}
    for name in families:
        student = controls.get(name, name)
        if student not in keys:
            raise ValueError(f"split_groups: {student} is in no group; name each model once, or leave split_groups out")
        groups.setdefault(keys[student], []).append(name)
    if len(groups) < 2:
        families_named = ", ".join(f"{name} ({family})" for name, family in families.items())
        raise ValueError(
            f"placement = 'split': all models would share workers: {families_named}; models of one family do, unless "
            "split_groups says otherwise: [['one', 'two'], ['three']]; or use placement = 'colocated'"
        )
    return tuple(tuple(group) for group in groups.values())
