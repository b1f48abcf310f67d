"""The network over which a run's workers exchange gradients: the interface that bears their node's Ray address.

Left to itself gloo takes the interface of whatever the host's name resolves to, and NCCL the first one it finds: where
/etc/hosts says 127.0.0.1, as Debian writes it, workers on two nodes do not find one another.
"""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


def interface_of(address: str) -> str:
    """The name of this machine's network interface that has an IP address; empty where none has it."""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(one.address == address for one in addresses)), "")


def use_node_interface() -> None:
    """Called in each worker before its process group is made; what the user has set in the environment is kept."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # "=": this one, not all that begin so


class _BackendOverNodeNetwork(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


class TorchOverNodeNetwork(TorchConfig):
    """Ray Train's torch configuration, with process groups over the nodes' own addresses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _BackendOverNodeNetwork
