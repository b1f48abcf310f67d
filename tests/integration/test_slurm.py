"""The batch script on a real Slurm of two nodes, both on this machine; Ray and antiphon are stubs that record.

Slurm runs without munge and as root, from a folder of its own; its daemons are started here and ended by their pids.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.process_registry import free_ports
from cluster.slurm import batch_script
from tests.cluster.specs import make_spec

pytestmark = pytest.mark.slow
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
CONFIG = """\
ClusterName=antiphon
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
FirstJobId={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1024
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1024
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
STUBS = {
    "ray": 'echo "ray on $SLURMD_NODENAME: $*" >> "$RECORDS"\n'
    'case "$1" in start) trap "exit 0" TERM; while :; do sleep 0.1; done;; esac\n',
    "python": 'case "$*" in *secrets*) echo 0123abcd;;\n'
    '*orchestrator*) echo "driver on $SLURMD_NODENAME" >> "$RECORDS"\n'
    'trap "echo saved >> $RECORDS; exit 75" TERM; while [ ! -e "$FINISH" ]; do sleep 0.1; done;; esac\n',
}


class Slurm:
    """A Slurm that runs from a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records, self.finish = folder, folder / "records", folder / "finish"
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(host=socket.gethostname().split(".")[0], ports=free_ports(3), folder=folder))
        self.environment = {**os.environ, "SLURM_CONF": str(config)}
        for name in ("state", "spool-n1", "spool-n2", "stubs"):
            (folder / name).mkdir()
        for name, body in STUBS.items():
            (folder / "stubs" / name).write_text(f"#!/bin/bash\n{body}")
            (folder / "stubs" / name).chmod(0o755)
        self.records.touch()
        daemons = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
        self.processes = [self._start(number, command) for number, command in enumerate(daemons)]

    def _start(self, number: int, command: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"daemon-{number}.out").open("wb") as out:
            return subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        return done.stdout.strip()

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, f"{what}: {self.call('squeue')}; {self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        outputs = [*self.folder.glob("*.log"), *self.folder.glob("daemon-*.out")]
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in outputs)

    def submit(self, **changes: Any) -> str:
        """Submit the script of a spec, and return the job's number."""
        setup = [f"export PATH={self.folder}/stubs:$PATH RECORDS={self.records} FINISH={self.finish}"]
        group = {"cpus": 1, "memory_gb": 1, "min": 2, "max": 2}
        spec = make_spec(workers={"cpu": group}, slurm={"setup": setup}, **changes)
        (self.folder / "job.sh").write_text(batch_script(spec))
        return self.call("sbatch", "--parsable", "job.sh")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(60)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no Slurm that can be started here: {', '.join(missing) or 'needs root'} (Debian: slurm-wlm)")
    running = Slurm(tmp_path)
    try:
        running.wait_for(lambda: running.call("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "two idle nodes")
        yield running
    finally:
        try:
            for job in running.call("squeue", "-h", "-o", "%i").split():
                running.call("scancel", job)
            running.wait_for(lambda: not running.call("squeue", "-h"), "no jobs")
        finally:
            running.stop()


def test_a_job_runs_saves_when_it_is_asked_and_is_queued_again(slurm: Slurm) -> None:
    def seen(line: str) -> bool:
        return line in slurm.records.read_text()

    job = slurm.submit()
    slurm.wait_for(lambda: seen("driver on n1"), "the driver")
    slurm.wait_for(lambda: seen("ray on n1: start --head"), "the head")
    slurm.wait_for(lambda: seen("ray on n2: start --address="), "the worker")
    slurm.call("scancel", "--signal=USR1", "--batch", job)  # what Slurm sends before the time limit
    slurm.wait_for(lambda: "Restarts=1" in slurm.call("scontrol", "show", "job", job), "queued again")
    assert seen("saved")


def test_a_cancelled_job_saves_and_stays_cancelled(slurm: Slurm) -> None:
    job = slurm.submit()
    slurm.wait_for(lambda: "driver on n1" in slurm.records.read_text(), "the driver")
    slurm.call("scancel", job)
    slurm.wait_for(lambda: not slurm.call("squeue", "-h"), "the job's end")
    assert "saved" in slurm.records.read_text()
    assert "JobState=CANCELLED" in slurm.call("scontrol", "show", "job", job)


def test_a_job_that_is_done_leaves_nothing_behind(slurm: Slurm) -> None:
    slurm.finish.touch()
    job = slurm.submit()
    slurm.wait_for(lambda: "JobState=COMPLETED" in slurm.call("scontrol", "show", "job", job), "the job's end")
    assert "ExitCode=0:0" in slurm.call("scontrol", "show", "job", job)
    assert "Restarts=0" in slurm.call("scontrol", "show", "job", job)
    assert not Path(f"/tmp/ray-{job}").exists()
