"""Two training loops side by side until each reaches fixed scores: the seconds of training that took them there.

Axes: B clips, T samples, C tags.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

CLIPS_AT_ONCE = 32  # that are scored


class Rule(NamedTuple):
    """When a loop is scored, and when it ends."""

    scores: tuple[float, ...]  # accuracies; a loop that has reached the highest ends
    turn: int  # steps between two measurements of the score
    budget: int  # steps, after which a loop ends


class Point(NamedTuple):
    """What a loop has spent on training, and the score that it has then."""

    steps: int
    seconds: float
    cpu_seconds: float
    accuracy: float


class ScoredClips(NamedTuple):
    """The clips that score both loops."""

    x_BT: Tensor
    target_B: Tensor


@dataclass
class Loop:
    """One of the loops. Each turn goes on with the random numbers of the loop's own last turn."""

    tagger: Any  # a module with `tag`, from waveforms to logits
    steps: Iterator[Any]
    random_state: tuple[Any, Any]  # of torch and numpy
    points: list[Point] = field(default_factory=list)

    def first(self, score: float) -> Point | None:
        """The first point with this score or a higher one."""
        return next((point for point in self.points if point.accuracy >= score), None)

    def has_ended(self, rule: Rule) -> bool:
        return self.first(max(rule.scores)) is not None or len(self.points) * rule.turn >= rule.budget

    def take_turn(self, rule: Rule, clips: ScoredClips) -> None:
        """Train for some steps; then score, which is not in the seconds."""
        torch.set_rng_state(self.random_state[0])
        np.random.set_state(self.random_state[1])
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(rule.turn):
            next(self.steps)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        self.random_state = (torch.get_rng_state(), np.random.get_state())
        if self.points:
            seconds, cpu_seconds = seconds + self.points[-1].seconds, cpu_seconds + self.points[-1].cpu_seconds
        score = accuracy(logits_of(self.tagger, clips.x_BT), clips.target_B)
        self.points.append(Point(rule.turn * (len(self.points) + 1), seconds, cpu_seconds, score))


def seeded_loop(tagger: Any, steps: Iterator[Any], seed: int) -> Loop:
    """A loop whose random numbers follow from a seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return Loop(tagger, steps, (torch.get_rng_state(), np.random.get_state()))


def logits_of(tagger: Any, x_BT: Tensor) -> Tensor:
    """Logits_BC of a network that trains."""
    tagger.eval()
    with torch.no_grad():
        logits_BC = torch.cat([tagger.tag(part_BT) for part_BT in x_BT.split(CLIPS_AT_ONCE)])
    tagger.train()
    return logits_BC


def accuracy(logits_BC: Tensor, target_B: Tensor) -> float:
    return float((logits_BC.argmax(1) == target_B).float().mean())


def train_side_by_side(loops: Mapping[str, Loop], rule: Rule, clips: ScoredClips) -> None:
    """Train the loops in turns, in this order, until each has ended."""
    while any(not loop.has_ended(rule) for loop in loops.values()):
        for loop in loops.values():
            if not loop.has_ended(rule):
                loop.take_turn(rule, clips)


def report_seed(seed: int, loops: Mapping[str, Loop], rule: Rule) -> None:
    """Print what each loop spent until it first reached each score, and its scores after every turn."""
    print(f"\nseed {seed}, {next(iter(loops))} first in each turn: steps, seconds, CPU seconds")
    for score in rule.scores:
        print(f"  {score:.0%}: " + "; ".join(f"{name} {_words(loops[name].first(score))}" for name in loops))
    for name, loop in loops.items():
        scores = " ".join(f"{100 * point.accuracy:.0f}" for point in loop.points)
        print(f"  {name}, % after every {rule.turn} steps: {scores}")


def report_ratios(seeds: Sequence[Mapping[str, Loop]], rule: Rule) -> None:
    """Print theirs over ours by score, medians over the seeds in which both reached it, and what a step took."""
    for score in rule.scores:
        reached = [(loops["ours"].first(score), loops["theirs"].first(score)) for loops in seeds]
        _print_ratios(f"{score:.0%}", reached)
    _print_steps(seeds)


def _words(point: Point | None) -> str:
    return "not reached" if point is None else f"{point.steps}, {point.seconds:.1f}, {point.cpu_seconds:.1f}"


def _print_ratios(title: str, reached: Sequence[tuple[Point | None, Point | None]]) -> None:
    """Theirs over ours, of the seeds in which both have reached the score."""
    both = [(ours, theirs) for ours, theirs in reached if ours and theirs]
    print(f"{title}, theirs over ours: reached by both in {len(both)} of {len(reached)} seeds", end="")
    for what in ("steps", "seconds", "cpu_seconds") if both else ():
        ratios = sorted(getattr(theirs, what) / getattr(ours, what) for ours, theirs in both)
        print(f"; {what} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
    print()


def _print_steps(seeds: Sequence[Mapping[str, Loop]]) -> None:
    """Seconds of a step over all steps of all seeds."""
    for name in ("ours", "theirs"):
        last = [loops[name].points[-1] for loops in seeds]
        steps = sum(point.steps for point in last)
        seconds, cpu_seconds = sum(point.seconds for point in last), sum(point.cpu_seconds for point in last)
        print(f"{name}: {steps} steps, {seconds / steps:.3f} s each, {cpu_seconds / steps:.3f} CPU s")
