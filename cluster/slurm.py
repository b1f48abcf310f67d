"""A batch script for Slurm: starts Ray on the nodes of an allocation, runs the command, and has itself queued again.

The script owns the order: the head on the first node, workers on the others, then the driver in the batch shell, where
it gets the signal that Slurm sends before the time limit. Starts nothing itself.
"""

import re
import shlex
from importlib import resources

from cluster.spec import Spec
from cluster.spec_nodes import Workers
from cluster.work_command import shell_command

TEMPLATE = resources.files("cluster").joinpath("templates/slurm.sh")


def batch_script(spec: Spec) -> str:
    """The script's text. Raises ValueError where the spec asks for what one Slurm job does not have."""
    group, work = _only_group(spec), spec.work
    assert work is not None, "checked by the spec"
    parts = {
        "OPTIONS": "\n".join(f"#SBATCH {option}" for option in _options(spec, group)),
        "REQUIRED": "\n".join(f': "${{{name}:?must be set where sbatch is called}}"' for name in spec.secrets),
        "ENVIRONMENT": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in spec.env.items()),
        "SETUP": "\n".join(spec.slurm.setup),
        "AUTH": _AUTH if spec.token_auth else "export RAY_AUTH_MODE=disabled",
        "RESOURCES": _ray_resources(group),
        "COMMAND": shell_command(work, spec.cache),
        "RETRIES": str(spec.limits.retries),
    }
    # one pass, so that nothing within a value is taken for a part; the line of an empty part goes with it
    return re.sub(r"@([A-Z]+)@(\n?)", lambda part: parts[part[1]] and parts[part[1]] + part[2], TEMPLATE.read_text())


_AUTH = """\
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') # of this allocation; it is written nowhere
export RAY_AUTH_TOKEN"""


def _only_group(spec: Spec) -> Workers:
    if spec.kind != "job":
        raise ValueError(f"kind = {spec.kind!r}: Slurm runs jobs; give --kind job, and have cron or scrontab repeat it")
    if len(spec.workers) != 1:
        groups = ", ".join(spec.workers)
        raise ValueError(f"workers: are {groups}, and a Slurm job has nodes of one kind; keep one group in this spec")
    (name,) = spec.workers
    group = spec.workers[name]
    if group.min < 1:
        raise ValueError(f"workers.{name}.min = {group.min}: must be 1 or more, since a Slurm job has a first node")
    if not float(group.cpus).is_integer():
        raise ValueError(f"workers.{name}.cpus = {group.cpus}: must be a whole number on Slurm")
    if 0 < spec.limits.deadline_s <= spec.slurm.save_s:
        raise ValueError(
            f"slurm.save_s = {spec.slurm.save_s}: must be less than limits.deadline_s ({spec.limits.deadline_s}), "
            "since the driver is asked to save so long before it"
        )
    return group


def _options(spec: Spec, group: Workers) -> list[str]:
    slurm, deadline = spec.slurm, spec.limits.deadline_s
    nodes = str(group.min) if group.min == group.max else f"{group.min}-{group.max}"
    options = [f"--job-name={spec.name}", f"--nodes={nodes}", "--ntasks-per-node=1"]
    options += [f"--cpus-per-task={group.cpus:g}", f"--mem={round(group.memory_gb * 1024)}M"]
    options += [f"--gpus-per-node={group.gpus}"] if group.gpus else []
    options += [f"--time={_minutes(deadline)}"] if deadline else []
    options += [f"--signal=B:USR1@{slurm.save_s}", "--requeue", "--open-mode=append", f"--output={spec.name}-%j.log"]
    options += [f"--partition={slurm.partition}"] if slurm.partition else []
    options += [f"--account={slurm.account}"] if slurm.account else []
    return [*options, *slurm.options]


def _minutes(seconds: int) -> int:
    """Slurm's time limit, rounded up."""
    return -(-seconds // 60)


def _ray_resources(group: Workers) -> str:
    options = [f"--num-cpus={group.cpus:g}", f"--num-gpus={group.gpus}"]
    options.append(f"--object-store-memory={int(group.shm_gb / 2 * 2**30)}")
    labels = ",".join(f"{key}={value}" for key, value in group.ray_labels.items())
    return shlex.join([*options, *([f"--labels={labels}"] if labels else [])])
