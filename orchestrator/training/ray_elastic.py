"""The number of workers of a run that follows its cluster (`--workers MIN-MAX`): Ray Train's elastic policy, and ours.

Runs in Ray's controller, on the driver's node, beside its polls of the workers; nothing here is called in parallel.
Ray's own policy takes any number within the range, and kills workers that train. Here the number divides the shards of
the global batch, and workers save before they are started again as more or fewer: no step is repeated.
"""

import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from orchestrator.training.worker_resources import Node, WorkerNeeds

SAVED = "saved_for_resize"  # key of the report by which a worker says that all is saved


class ResizeRequest:
    """The controller's wish, in a worker's process, that the workers save and wait to be started again."""

    def __init__(self) -> None:
        self._made = threading.Event()

    def make(self) -> None:
        self._made.set()

    def made(self) -> bool:
        return self._made.is_set()


RESIZE_REQUEST = ResizeRequest()  # of this process, which has one worker


def request_resize() -> None:
    """Called by the controller in rank 0's process."""
    RESIZE_REQUEST.make()


class DivisorScalingPolicy(ElasticScalingPolicy):
    """Starts as many workers as the cluster holds of the given numbers; changes it once the workers have saved."""

    def __init__(self, scaling_config: ScalingConfig, needs: WorkerNeeds, sizes: tuple[int, ...]) -> None:
        super().__init__(scaling_config)
        self._needs, self._sizes = needs, sizes
        self._attempts = 0  # to start workers, since some were running
        self._running: list[Worker] = []
        self._asked: float | None = None  # start of the group of workers that is asked to save
        self._saved: set[int] = set()  # ranks of that group that have

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Where not even the least number fits, that number is started all the same.

        It waits as a fixed number would, for nodes that come, and gives up as that does; Ray's own policy waits for
        ever.
        """
        self._maybe_send_resource_request()
        self._running, self._attempts = [], self._attempts + 1
        return self._get_resize_decision(self._possible() or self._sizes[0])

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        self._running, self._attempts = worker_group_state.workers, 0
        if self._asked != worker_group_state.start_time:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                worker_group_state.workers[0].execute_async(request_resize)
                self._asked, self._saved = worker_group_state.start_time, set()
            return NoopDecision()
        self._maybe_send_resource_request()
        self._saved |= {
            rank
            for rank, status in worker_group_status.worker_statuses.items()
            if status.training_report is not None and SAVED in status.training_report.metrics
        }
        if len(self._saved) < worker_group_state.num_workers:
            return NoopDecision()
        # counted again: the cluster may have changed while they saved
        return self._get_resize_decision(self._possible() or worker_group_state.num_workers)

    def _possible(self) -> int:
        """How many workers can be started now; 0 where not even the least number can, or the cluster does not say."""
        reserved = self._get_reserved_resources()
        return 0 if reserved is None else self._count_possible_workers(reserved)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """The largest of the numbers that fits into what Ray has reserved for this run, on nodes that stay.

        Ray's own count knows neither strict placements nor shares of a CPU or GPU, and Ray's reservation nothing of
        what others than its own trainers use: what is free, or used by this run, must do as well. It is not asked at
        the first attempt to start workers, when what the ones before have used may not count as free yet.
        """
        held = self._needs.count(_nodes_with(reserved_resources))
        if self._running or self._attempts > 1:
            held = min(held, self._needs.count(_nodes_with(self._free())))
        return largest_fitting(self._sizes, held)

    def _free(self) -> dict[str, dict[str, float]]:
        """By node what is free there, or used by the running workers of this run."""
        free: dict[str, dict[str, float]] = available_resources_per_node()
        for worker in self._running:
            node = free.setdefault(worker.metadata.node_id, {})
            for what, amount in self._needs.resources.items():
                node[what] = node.get(what, 0.0) + amount
        return free


def _nodes_with(resources: Mapping[str, Mapping[str, float]]) -> list[Node]:
    """The nodes of which resources are named, without those that are gone or will be taken away."""
    leaving = ray._private.state.state.get_draining_nodes()
    return [
        Node(resources[node["NodeID"]], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] in resources and node["NodeID"] not in leaving
    ]


def largest_fitting(sizes: tuple[int, ...], held: int) -> int:
    """The largest of these numbers of workers that is not above what the cluster holds; 0 where all are."""
    return max((size for size in sizes if size <= held), default=0)


class ElasticTorchTrainer(TorchTrainer):
    """Ray's TorchTrainer with `DivisorScalingPolicy` in the place of Ray's own."""

    def __init__(self, *args: Any, needs: WorkerNeeds, sizes: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._needs, self._sizes = needs, sizes

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        policy = DivisorScalingPolicy(self.scaling_config, self._needs, self._sizes)  # type: ignore[arg-type]
        return super()._initialize_and_run_controller(**{**controller, "scaling_policy": policy})
