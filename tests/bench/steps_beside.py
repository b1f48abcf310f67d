"""Steps of our training loop beside steps of another project's: the same clips, one thread, in turns.

Axes: B clips, C tags.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.recipes.loader import load_recipe
from tests import stores
from tests.bench.conftest import TAGS
from workloads.data.augment import VIEW_VERSION
from workloads.run import Run
from workloads.train_step import train_step

ROUNDS, STEPS = 3, 3


def recipe_settings(
    paths: Sequence[Path], folder: Path, shard: int, *, labels: str = "multi", tags: int = TAGS
) -> list[str]:
    """Settings that make a recipe hear these files of 10 s on one thread; each has one of the tags, in turn."""
    rows = [f"{path.stem},{path.name},tag{number % tags},{1 + (number >= 8)}" for number, path in enumerate(paths)]
    (folder / "clips.csv").write_text("\n".join(["clip_id,path,tags,fold", *rows]))
    settings = [f"data={{format='manifest', manifest='{folder}/clips.csv', root='{folder}', labels='{labels}'}}"]
    settings += ["data.clip_seconds=10.0", f"data.cache={folder}/cache", "data.val_share=0.1", "train.device=cpu"]
    return [*settings, f"train.shard_size={shard}", "train.threads=1", "train.precision=fp32"]


def store_of(
    paths: Sequence[Path], folder: Path, recipe: str, settings: list[str], *, rate: int, k: int = 0
) -> list[str]:
    """A store of drawn logits of the recipe's views of these clips, and the setting that makes it the first teacher."""
    augment = vars(load_recipe(recipe, settings).augment) | {"mixup": 0.0}  # students mix by themselves
    views = {"version": VIEW_VERSION, "augment": augment, "clip_seconds": 10.0, "rate": rate}
    about = stores.about(tags=TAGS, views=1, k=k) | {"views": views | {"count": 1}}
    stores.fill(str(folder / "store"), about, [path.stem for path in paths], per_shard=64)
    return [f"edges.0.teacher=store:{folder}/store"]


def our_steps(start: Callable[..., Run], recipe: str, settings: list[str]) -> Iterator[float]:
    """Steps of a recipe's first phase; the run is set up before the first."""
    yield from steps_of(start(load_recipe(recipe, settings)))


def steps_of(run: Run) -> Iterator[float]:
    """Steps of a run's first phase."""
    sources = run.pool.enter_phase(run.phases[0])
    while True:
        train_step(run, run.phases[0], sources)
        run.step += 1
        yield 0.0


def seconds(steps: Iterator[float]) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    return (time.perf_counter() - began) / STEPS


def compare_steps(title: str, shard: int, ways: dict[str, Iterator[float]], capsys: Any) -> None:
    """Print clips/s of `ours` and `theirs`, medians of turns, and the median of the turns' ratios."""
    torch.set_num_threads(1)
    for steps in ways.values():
        next(steps)
    rounds = [{name: seconds(steps) for name, steps in ways.items()} for _ in range(ROUNDS)]
    ratios = sorted(each["theirs"] / each["ours"] for each in rounds)
    speeds = {name: shard / statistics.median(each[name] for each in rounds) for name in ways}
    with capsys.disabled():
        print(f"\n{title}, clips of 10 s, batches of {shard}, one thread, no loader processes")
        print(f"  ours {speeds['ours']:.2f}, theirs {speeds['theirs']:.2f} clips/s", end="")
        print(f", ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
