"""Specs of clusters for tests: the values of a whole one, which tests change key by key."""

import copy
from typing import Any

from cluster.spec import Spec
from cluster.spec_file import parse_spec

VALUES: dict[str, Any] = {
    "name": "nightly",
    "image": "registry.example.org/antiphon:0.1.0",
    "work": {
        "command": "run",
        "recipe": "demo",
        "id": "nightly-1",
        "storage": "s3://bucket/runs",
        "tracking": "none",
        "arguments": ["--workers", "2", "--set", "train.shards=2"],
    },
    "head": {"cpus": 2, "memory_gb": 8},
    "workers": {"cpu": {"cpus": 4, "memory_gb": 8, "min": 2, "max": 2}},
}


def spec_values(**changes: Any) -> dict[str, Any]:
    """The values with those at dotted paths replaced (`work__id="x"`: work.id), or removed where one is None."""
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *parents, last = path.split("__")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
        if value is None:
            table.pop(last)
        else:
            table[last] = value
    return values


def make_spec(**changes: Any) -> Spec:
    return parse_spec(spec_values(**changes))


SERVE: dict[str, Any] = {"models": {"cnn": "s3://bucket/runs/x/models/cnn", "vit": "/models/vit"}}
SPOT_GPUS = {"cpus": 8, "memory_gb": 32, "gpus": 1, "accelerator": "A100", "min": 0, "max": 4, "spot": True}
AUTOSCALER = {
    "provider": {"type": "aws", "region": "eu-central-1"},
    "head_node": {"InstanceType": "m7i.xlarge"},
    "nodes": {"cpu": {"InstanceType": "m7i.2xlarge"}},
}
