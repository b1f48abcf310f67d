"""Which messages workers with different models exchange, and what a split step sends."""

from collections.abc import Callable

import pytest
import torch

from tests import placed
from workloads.config.edge import Edge
from workloads.config.recipe import Recipe
from workloads.distill.exchange import Exchange, Message, RemoteTeacher, ask_teachers
from workloads.distill.output_sizes import OutputSizes
from workloads.distill.schedule import Phase
from workloads.distill.sources import TeacherKey
from workloads.runtime.placement import Placement, WorkerGroup

EDGES = (
    Edge(teacher="a", student="b"),
    Edge(teacher="a", student="c"),
    Edge(teacher="a", student="c", name="again", carries="embedding", loss="cosine"),
    Edge(teacher="a", student="d", source="ema"),
    Edge(teacher="b", student="a", carries="temporal"),
    Edge(teacher="store:/x", student="b"),
    Edge(teacher="b", student="c"),
)
PLACES = {"a": 0, "b": 1, "c": 2, "d": 2}


def exchange_of(rank: int, *, workers: int = 6) -> Exchange:
    """That of one worker of three groups: the models a, b, and c with d."""
    data_rank, group = divmod(rank, 3)
    models = tuple(name for name, place in PLACES.items() if place == group)
    one_model = WorkerGroup(data_rank, workers // 3)
    placement = Placement(models, data_rank, workers // 3, {}, one_model, WorkerGroup(rank, workers), None, PLACES)
    phase = Phase(start=0, steps=1, trains=tuple(PLACES), edges=EDGES)
    return Exchange(placement, phase, OutputSizes(lambda name: pytest.fail(name)), 8, torch.device("cpu"))


def test_each_kind_goes_once_to_each_worker_that_needs_it() -> None:
    live, average = TeacherKey("a", "same", "live"), TeacherKey("a", "same", "ema")
    of_b = TeacherKey("b", "same", "live")
    second = exchange_of(3)  # the second worker with a: its partners are 4 and 5
    assert second.outgoing == (
        Message(live, "logits", 4, 0),
        Message(live, "logits", 5, 1),
        Message(live, "embedding", 5, 2),
        Message(average, "logits", 5, 3),
    )
    assert second.incoming == (Message(of_b, "temporal", 4, 4),)
    for rank in range(6):  # what one sends the other expects, with the same number and in the same order
        for other in range(6):
            sent = [message._replace(peer=0) for message in exchange_of(rank).outgoing if message.peer == other]
            expected = [message._replace(peer=0) for message in exchange_of(other).incoming if message.peer == rank]
            assert sent == expected


def test_outputs_of_teachers_here_are_posted_before_anything_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    exchange = exchange_of(0)
    monkeypatch.setattr(exchange, "post", lambda outputs: calls.append(f"post {sorted(outputs)}"))
    monkeypatch.setattr(exchange, "collect", lambda key: calls.append(f"collect {key.teacher}") or {})

    class Here:
        def outputs(self, shard, student_outputs):
            calls.append("ask")
            return {}

    live = Here()
    remote = RemoteTeacher(TeacherKey("b", "same", "live"), exchange)
    sources = {EDGES[4].key: remote, **{EDGES[number].key: live for number in (0, 1, 2)}}
    ask_teachers(sources, exchange.phase, exchange, None, {})  # type: ignore[arg-type]
    assert calls == ["ask", f"post {[TeacherKey('a', 'same', 'live')]}", "collect b"]


def test_a_split_step_sends_logits_and_nothing_else(tiny: Callable[..., Recipe], tmp_path) -> None:
    """Mutual learning, two edges: each worker sends 8 clips x 10 tags x 4 bytes and receives as much, per shard."""
    recipe = tiny(
        "mutual", "placement=split", "train.shards=2", "schedule.burn_in=1", "schedule.steps=3", "schedule.ramp=0"
    )
    assert placed.train(tmp_path / "run", {"mutual": recipe}, workers=2) == [0, 0]
    for rank in range(2):
        sent, received = map(int, (tmp_path / "run" / f"bytes-{rank}").read_text().split())
        assert sent == received == 3 * 2 * 8 * 10 * 4
