"""Whether a recipe's networks can be built for its clips. Builds their shapes only: no weights, no data, no device."""

from functools import lru_cache

from workloads.config.architectures import Arch
from workloads.config.recipe import FrontEnd, Recipe
from workloads.models.families import empty_backbone
from workloads.models.front_end import build_front_end

LONGEST_S = 60.0  # a network that takes no clip of this length is not mended by longer ones
GRID = 100  # lengths per second among which the smallest one is looked for


def require_buildable(recipe: Recipe) -> None:
    """Raise ValueError where a model cannot be built for clips of `data.clip_seconds`; every command checks this first.

    The message names the first such model, its rule, and, where they are too short for it, the shortest clips that all
    models of the recipe take.
    """
    seconds = recipe.data.clip_seconds
    mistakes = {name: mistake for name in recipe.models if (mistake := _mistake_of(recipe, name, seconds))}
    if not mistakes:
        return
    name, mistake = next(iter(mistakes.items()))
    longer = [length for name in mistakes if (length := _shortest(recipe, name)) is not None and length > seconds]
    mended = len(longer) == len(mistakes)
    fix = f"; from --set data.clip_seconds={max(longer):g} on all models work" if mended else ""
    raise ValueError(f"data.clip_seconds = {seconds:g}: models.{name} ({_kinds(recipe, name)}): {mistake}{fix}")


def _kinds(recipe: Recipe, name: str) -> str:
    model = recipe.models[name]
    return f"{model.arch.family} on {model.front_end.kind}"


def _shortest(recipe: Recipe, name: str) -> float | None:
    """The shortest clip in seconds for which a model can be built, on a grid; None: not even a long one."""
    too_short, works = 0, round(LONGEST_S * GRID)
    if _mistake_of(recipe, name, works / GRID):
        return None
    while works - too_short > 1:
        middle = (too_short + works) // 2
        too_short, works = (middle, works) if _mistake_of(recipe, name, middle / GRID) else (too_short, middle)
    return works / GRID


def _mistake_of(recipe: Recipe, name: str, seconds: float) -> str:
    model = recipe.models[name]
    return _mistake(model.arch, model.front_end, recipe.rate, seconds)


@lru_cache(maxsize=4096)  # the corners of a search's space have few different networks
def _mistake(arch: Arch, settings: FrontEnd, clip_rate: int, seconds: float) -> str:
    """Why the network cannot be built for clips of this length; empty where it can."""
    try:
        front_end = build_front_end(settings.kind, clip_rate=clip_rate)
        frames = front_end.input_frames(settings, seconds)
        empty_backbone(arch, bands=front_end.bands, frames=frames, num_classes=2)
    except ValueError as mistake:
        return str(mistake).removeprefix(f"clip_seconds = {seconds:g}: ")
    return ""
