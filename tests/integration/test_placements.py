"""Placements on real Ray: the same bits as in one process, also after a worker or a server of teachers is killed."""

import json

import pytest

from tests.faults import recovery
from tests.integration.test_ray_kills import hashes, started
from tests.integration.test_run import SMALL, TURNS, antiphon, outcome_of, records, settings
from tests.integration.test_run_ended import wait_for_record

# no burn-in: a teacher is asked from the first step on
LONG = ["schedule.burn_in=0", "schedule.period=120", "schedule.turns=2", "train.checkpoint_every=40"]
PLACED = {
    "split": ["--workers", "2", *settings(["placement=split"])],
    "service": ["--workers", "2", *settings(["placement=service", "service.actors=2"])],
}
PROCESS = {"split": "RayTrainWorker", "service": "TeacherActor"}  # part of the command line of those that are killed


def command(folder, plan: list[str]) -> list[str]:
    values = settings([*SMALL, *plan, "train.shards=2", f"data.cache={folder}/clips"])
    return ["run", "demo", "--json", "--tracking", "none", *values]


def trained(outcome: dict) -> list[tuple[int, dict]]:
    return [(record["step"], record["values"]) for record in records(outcome) if record["kind"] == "metrics"]


@pytest.mark.slow
def test_split_and_service_give_the_bits_of_one_process(tmp_path):
    here = outcome_of(antiphon(*command(tmp_path, TURNS), "--local", "--storage", f"{tmp_path}/local"))
    for placement, options in PLACED.items():
        placed = outcome_of(antiphon(*command(tmp_path, TURNS), *options, "--storage", f"{tmp_path}/{placement}"))
        assert hashes(placed) == hashes(here), placement
        for (step, values), (other_step, others) in zip(trained(placed), trained(here), strict=True):
            assert step == other_step
            assert values == pytest.approx(others, rel=1e-5), "means over shards are added up in another order"


@pytest.mark.faults
@pytest.mark.parametrize("placement", PLACED)
def test_a_killed_part_of_a_placed_run_is_replaced(tmp_path, placement, fault_table):
    whole = outcome_of(antiphon(*command(tmp_path, LONG), "--local", "--storage", f"{tmp_path}/whole"))
    where = ["--storage", f"{tmp_path}/runs", "--run-id", "a"]
    with started([*command(tmp_path, LONG), *PLACED[placement], *where]) as (process, children):
        wait_for_record(tmp_path / "runs", process, kind="checkpoint")
        victim = next(child for child in children() if PROCESS[placement] in " ".join(child.cmdline()))
        victim.kill()
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    assert json.loads(out)["resumed_from_step"] >= 40
    assert hashes(json.loads(out)) == hashes(whole)
    what = {"split": "a worker of a split run killed", "service": "a server of teachers killed"}[placement]
    times = recovery(tmp_path / "runs" / "a" / "events.jsonl")
    fault_table(fault=f"Ray: {what}", seen="nothing; Ray starts the workers again", **times, equal=True)
