"""How much memory this process may still take: of the machine, and of the control group that its container is.

Control groups are Linux's; elsewhere the machine's memory is what counts. Does not depend on what the memory is for.
"""

from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
LIMIT_AND_USAGE = (  # below the group, in versions 2 and 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
CACHED = ("inactive_file", "active_file")  # counted as used, and given up when it is needed


def free_memory(*, group: Path = GROUP) -> int:
    """In bytes: what the machine has available, or less where the group's limit leaves less."""
    import psutil  # here, since a tagger's code in MLflow runs without it

    free = int(psutil.virtual_memory().available)
    for limit, usage, stat in LIMIT_AND_USAGE:
        if (group / limit).is_file() and (most := (group / limit).read_text().strip()) != "max":
            fields = _fields(group / stat)
            used = int((group / usage).read_text()) - sum(fields.get(name, 0) for name in CACHED)
            free = min(free, max(0, int(most) - used))
    return free


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel with a name and a number in each line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in rows}
