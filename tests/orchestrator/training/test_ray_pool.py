"""Pieces of work on a pool of Ray actors, some of which die or hang."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training import ray_pool
from orchestrator.training.ray_pool import PoolWork, WorkerDied, run_on_ray
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import needs_of

pytestmark = pytest.mark.faults


class Hanging:
    """Doubles numbers; at a number for which there is no file yet it leaves one and waits for ever, or always."""

    def __init__(self, folder: Path, always: frozenset[int]) -> None:
        self._folder, self._always = folder, always

    def double(self, number: int) -> int:
        seen = self._folder / str(number)
        if number in self._always or not seen.exists():
            seen.touch()
            threading.Event().wait()
        return 2 * number


def double(folder: Path, numbers: range, *, always: frozenset[int] = frozenset()) -> dict[int, int]:
    done: dict[int, int] = {}

    def add(number: int, doubled: Any) -> None:
        assert number not in done
        done[number] = doubled

    work = PoolWork[int](
        actor=Hanging,
        arguments=(folder, always),
        start=lambda actor, number: actor.double.remote(number),
        name=lambda number: f"number {number}",
        needs=needs_of(1, "cpu"),
        visible={},
        fix="or add nodes",
        waits_s=0.0,
    )
    with Interrupts() as interrupts:
        run_on_ray(work, numbers, add, workers=2, address="", wait_s=0.0, interrupts=interrupts)
    return done


def test_each_piece_is_done_once_though_workers_hang_before_any_has_ended(tmp_path, monkeypatch):
    """Both actors hang at their first piece, so nothing is known of how long one takes."""
    monkeypatch.setattr(ray_pool, "FIRST_S", 3.0)
    monkeypatch.setattr(ray_pool, "LEAST_S", 3.0)
    for number in range(2, 8):
        (tmp_path / str(number)).touch()
    assert double(tmp_path, range(8)) == {number: 2 * number for number in range(8)}


def test_a_piece_at_which_every_worker_hangs_ends_the_work(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ray_pool, "LEAST_S", 2.0)
    monkeypatch.setattr(ray_pool, "TIMES_SLOWEST", 0.0)
    for number in range(4):
        (tmp_path / str(number)).touch()
    message = r"number 2: lost 4 times: its worker has not ended within 2 s; what is written stays, the same command"
    with pytest.raises(WorkerDied, match=message):
        double(tmp_path, range(4), always=frozenset({2}))
    given_up = re.findall(r"number 2: its worker has not ended within 2 s; another one gets it", capfd.readouterr().err)
    assert len(given_up) == 3
