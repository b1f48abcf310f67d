"""The batch script for Slurm: run with stubs in the place of Slurm, Ray and Python, which record their arguments."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.slurm import batch_script
from tests.cluster.specs import make_spec

RECORD = 'echo "$(basename "$0") $*" >> "$RECORDS"\n'
STUBS = {
    "scontrol": RECORD + 'if [ "$1" = show ]; then printf "node1\\nnode2\\nnode3\\n"; fi\n',
    # a step lasts until it is ended, as `ray start --block` does
    "srun": RECORD + 'case "$*" in *"ray start"*) trap "exit 0" TERM; while :; do sleep 0.1; done;; esac\n',
    "ray": RECORD,
    "getent": 'echo "127.0.1.1 STREAM node1"; echo "10.0.0.7 STREAM node1"\n',
    "python": RECORD
    + 'case "$*" in *secrets*) echo 0123abcd;; *orchestrator*) env | grep -E "^(RAY_|NOTE)" >> "$RECORDS"; '
    + 'if [ -n "$SIGNALLED" ]; then trap "exit 75" TERM; kill -"$SIGNALLED" "$PPID"; while :; do sleep 0.1; done; fi; '
    + 'exit "$CODE";; esac\n',
}
FULL: dict[str, Any] = {
    "workers": {"gpu": {"cpus": 8, "memory_gb": 32, "gpus": 2, "min": 2, "max": 4, "labels": {"team": "audio"}}},
    "limits": {"deadline_s": 3601, "retries": 2},
    "slurm": {"partition": "gpu", "account": "audio", "options": ["--qos=high"], "setup": ["NOTE2=1"]},
    "env": {"NOTE": "two words; $HOME"},
    "secrets": {"AWS_SECRET_ACCESS_KEY": "s3/secret-key"},
}


class Ended:
    """A script that has run: its exit code, its output, and the stubs' records."""

    def __init__(self, tmp_path: Path, script: str, **variables: str) -> None:
        for name, body in STUBS.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
            (tmp_path / name).chmod(0o755)
        (tmp_path / "job.sh").write_text(script)
        records = tmp_path / "records"
        records.touch()
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "RECORDS": str(records),
            "HOME": str(tmp_path),
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_JOB_ID": "4711",
            "AWS_SECRET_ACCESS_KEY": "of the one who submits",
            "CODE": "0",
            "SIGNALLED": "",
            **variables,
        }
        done = subprocess.run(
            ["bash", str(tmp_path / "job.sh")], env=environment, capture_output=True, text=True, timeout=120
        )
        self.code, self.errors, self.records = done.returncode, done.stderr, records.read_text()

    def calls(self, program: str) -> list[str]:
        return [line for line in self.records.splitlines() if line.startswith(f"{program} ")]


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_asks_slurm_for_the_group() -> None:
    assert options(batch_script(make_spec(**FULL))) == [
        *("--job-name=nightly", "--nodes=2-4", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=32768M"),
        *("--gpus-per-node=2", "--time=61", "--signal=B:USR1@300", "--requeue", "--open-mode=append"),
        *("--output=nightly-%j.log", "--partition=gpu", "--account=audio", "--qos=high"),
    ]
    plain = options(batch_script(make_spec()))
    assert "--nodes=2" in plain
    assert not [option for option in plain if option.startswith(("--gpus", "--time", "--partition", "--account"))]


@pytest.mark.parametrize("changes", [{}, FULL])
def test_the_script_is_bash_and_no_part_of_the_template_is_left(changes: dict[str, Any]) -> None:
    script = batch_script(make_spec(**changes))
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert re.findall(r"@[A-Z]+@", script) == []
    assert script == batch_script(make_spec(**changes))


def test_the_head_is_on_the_first_node_workers_on_the_others_and_the_driver_beside_the_head(tmp_path: Path) -> None:
    ended = Ended(tmp_path, batch_script(make_spec(**FULL)))
    assert (ended.code, ended.errors) == (0, "")
    head, others, *rest = ended.calls("srun")
    assert head.startswith("srun --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist=node1 ray start --head")
    assert others.startswith("srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=node2,node3 ray start")
    assert rest == ["srun --overlap --ntasks-per-node=1 rm -rf /tmp/ray-4711"]
    port = 20000 + 711 * 10
    assert f" --node-ip-address=10.0.0.7 --port={port} " in head  # and not 127.0.1.1
    assert f" --address=10.0.0.7:{port} " in others
    for call in (head, others):
        assert " --num-cpus=8 --num-gpus=2 " in call
        assert " --labels=team=audio " in call
        assert " --block" in call
    (driver,) = [call for call in ended.calls("python") if "orchestrator" in call]
    assert driver.startswith("python -m orchestrator.cli.app run demo --run-id nightly-1 --resume auto --storage s3://")
    assert {f"RAY_ADDRESS=10.0.0.7:{port}", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=0123abcd"} <= {
        *ended.records.splitlines()
    }
    assert "NOTE=two words; $HOME" in ended.records.splitlines()


@pytest.mark.parametrize(
    ("variables", "code", "requeued"),
    [
        ({"CODE": "0"}, 0, False),
        ({"CODE": "1"}, 1, False),
        ({"CODE": "2"}, 2, False),
        ({"CODE": "75"}, 75, True),
        ({"CODE": "75", "SLURM_RESTART_COUNT": "1"}, 75, True),
        ({"CODE": "75", "SLURM_RESTART_COUNT": "2"}, 75, False),
        ({"SIGNALLED": "USR1"}, 75, True),  # the time limit comes: the driver saves
        ({"SIGNALLED": "TERM"}, 75, False),  # cancelled, or preempted, when Slurm itself queues it again
    ],
)
def test_a_command_that_could_go_on_is_queued_again(
    tmp_path: Path, variables: dict[str, str], code: int, requeued: bool
) -> None:
    ended = Ended(tmp_path, batch_script(make_spec(**FULL)), **variables)
    assert ended.code == code
    assert ended.calls("scontrol")[1:] == (["scontrol requeue 4711"] if requeued else [])


def test_a_job_without_its_secrets_ends_before_it_begins(tmp_path: Path) -> None:
    script = batch_script(make_spec(**FULL))
    assert "of the one who submits" not in script
    ended = Ended(tmp_path, script, AWS_SECRET_ACCESS_KEY="")
    assert ended.code == 1
    assert "AWS_SECRET_ACCESS_KEY: must be set where sbatch is called" in ended.errors
    assert ended.records == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cluster"}, "kind = 'cluster': Slurm runs jobs"),
        ({"workers__more": {"cpus": 1, "memory_gb": 1, "min": 1, "max": 1}}, "workers: are cpu, more"),
        ({"workers__cpu__min": 0}, "workers.cpu.min = 0: must be 1 or more"),
        ({"workers__cpu__cpus": 1.5}, r"workers.cpu.cpus = 1.5: must be a whole number"),
        ({"limits": {"deadline_s": 300}}, r"slurm.save_s = 300: must be less than limits.deadline_s \(300\)"),
    ],
)
def test_specs_that_one_slurm_job_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_script(make_spec(**changes))
