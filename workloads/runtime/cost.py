"""What training costs: wall time of a worker, and processor time of its process with all threads.

Does not depend on torch. Not counted: processes that load clips ahead or send records to MLflow, and what comes before
the first step (data, weights), which depends on what an earlier run has left in the cache. The driver's threads
(heartbeat, uploads, samples of the machine) are counted where it trains in its own process: with `--local`, and in all
runs of a study; with Ray Train's workers they are not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class CostMeter:
    """Measures one worker from now on; for one thread."""

    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def take(self) -> tuple[float, float]:
        """Wall and processor seconds since the last call, or since it was made."""
        before = self._wall, self._cpu
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self._wall - before[0], self._cpu - before[1]


def cost_of_workers(of_workers: Sequence[tuple[float, float]], device: str) -> dict[str, float]:
    """Of all workers together: seconds of the slowest one, processor seconds of all, and how long all held a GPU."""
    walls = [wall for wall, _ in of_workers]
    return {
        "seconds": round(max(walls), 3),
        "cpu_seconds": round(sum(cpu for _, cpu in of_workers), 3),
        "gpu_seconds": round(sum(walls), 3) if device == "cuda" else 0.0,
    }
