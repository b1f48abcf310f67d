"""How far ahead the servers of frozen teachers are asked, and whose answer is whose."""

from types import SimpleNamespace
from typing import Any

import torch

from workloads.data.shard import ViewKey
from workloads.distill.service import AnswersAhead, ServedOutputs, ServedTeacher
from workloads.distill.sources import TeacherKey

TEACHER = TeacherKey("cnn", "same", "live")


def keys_of(step: int, index: int) -> tuple[ViewKey, ...]:
    return (ViewKey(f"clip-{step}-{index}", 0, 0),)


class Service:
    """Answers with the number of the step; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def ask(self, step: int, index: int) -> Any:
        self.asked.append((step, index))
        served = ServedOutputs(keys_of(step, index), {TEACHER: {"logits": torch.full((1, 2), float(step))}})
        return SimpleNamespace(result=lambda: served)


def test_shards_are_asked_for_ahead_and_not_beyond_the_phase() -> None:
    service = Service()
    places = [(step, index) for step in range(5, 8) for index in (2, 3)]  # three steps with two shards each
    answers = AnswersAhead(service, iter(places), ahead=2)  # type: ignore[arg-type]
    teacher = ServedTeacher(TEACHER, answers, torch.device("cpu"))
    assert service.asked == []
    for number, (step, index) in enumerate(places):
        shard: Any = SimpleNamespace(keys=keys_of(step, index))
        for _ in range(2):  # two teachers of one shard share its answer
            assert teacher.outputs(shard, {})["logits"].tolist() == [[step, step]]
        assert service.asked == places[: number + 3]
    assert answers.bytes_received == 6 * 2 * 4
