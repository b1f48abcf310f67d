"""The file of `ray up`: valid by Ray's own schema and defaults, and what is refused."""

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.autoscaler import autoscaler_config
from cluster.render import render
from cluster.spec import Spec
from tests.cluster.specs import AUTOSCALER, SPOT_GPUS, make_spec

RAY = find_spec("ray")  # not imported: it would keep this process's tokens for the tests that follow
assert RAY
assert RAY.origin
SCHEMA = json.loads((Path(RAY.origin).parent / "autoscaler" / "ray-schema.json").read_text())
NODES = {**AUTOSCALER["nodes"], "gpu": {"InstanceType": "p4d.24xlarge"}}
FULL: dict[str, Any] = {
    "workers__gpu": {**SPOT_GPUS, "labels": {"team": "audio"}},
    "autoscaler": {**AUTOSCALER, "nodes": NODES, "env_file": "/etc/antiphon.env"},
    "secrets": {"AWS_SECRET_ACCESS_KEY": "s3/secret-key"},
    "env": {"NOTE": "two words"},
    "cache": {"path": "/clips"},
    "limits": {"idle_s": 120},
}


def read_back(spec: Spec) -> dict[str, Any]:
    config = yaml.safe_load(render(spec, "autoscaler"))
    assert config == json.loads(json.dumps(autoscaler_config(spec)))
    return config


@pytest.mark.parametrize("changes", [{"autoscaler": AUTOSCALER}, FULL])
def test_the_file_is_valid_by_ray_s_schema(changes: dict[str, Any]) -> None:
    config = read_back(make_spec(**changes))
    jsonschema.validate(config, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_wokers": 1}, SCHEMA)


def test_ray_takes_the_file_as_ray_up_does() -> None:
    """Ray's own preparation and checks, with the provider's defaults but without the provider."""
    program = (
        "import json, sys\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "prepared = prepare_config(json.load(sys.stdin))\n"
        "validate_config(prepared)\n"
        "print(prepared['max_workers'])\n"
    )
    config = json.dumps(read_back(make_spec(**FULL)))
    done = subprocess.run([sys.executable, "-c", program], input=config, capture_output=True, text=True, timeout=300)
    assert done.stdout == "6\n", done.stderr


def test_nodes_have_what_the_spec_says() -> None:
    config = read_back(make_spec(**FULL))
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert (types["cpu"]["min_workers"], types["cpu"]["max_workers"]) == (2, 2)
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 4)
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1}
    assert types["gpu"]["labels"] == {
        "team": "audio",
        "ray.io/market-type": "spot",
        "ray.io/accelerator-type": "A100",
    }
    assert types["gpu"]["node_config"] == {
        "InstanceType": "p4d.24xlarge",
        "InstanceMarketOptions": {"MarketType": "spot"},
    }
    assert types["gpu"]["docker"] == {"worker_run_options": ["--shm-size=8192m"]}
    assert "InstanceMarketOptions" not in types["cpu"]["node_config"]
    assert config["idle_timeout_minutes"] == 2
    assert config["initialization_commands"] == ["sudo install -d -m 1777 /var/lib/antiphon/clips"]


def test_containers_get_variables_the_token_s_path_and_the_file_with_secrets() -> None:
    config = read_back(make_spec(**FULL))
    words = shlex.split(" ".join(config["docker"]["run_options"]))
    assert {"--env=NOTE=two words", "--env-file=/etc/antiphon.env", "--env=RAY_AUTH_MODE=token"} <= {*words}
    assert "--volume=/var/lib/antiphon/clips:/clips" in words
    assert config["file_mounts"] == {"/tmp/ray-auth-token": "~/.ray/auth_token"}
    assert "--env=RAY_AUTH_TOKEN_PATH=/tmp/ray-auth-token" in words
    assert "--num-cpus=0" in config["head_start_ray_commands"][1]
    closed = read_back(make_spec(autoscaler=AUTOSCALER, token_auth=False))
    assert closed["file_mounts"] == {}
    assert "--env=RAY_AUTH_MODE=disabled" in closed["docker"]["run_options"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "autoscaler: is missing"),
        ({"autoscaler": AUTOSCALER, "workers__gpu": SPOT_GPUS}, "autoscaler.nodes: must describe .* cpu, gpu"),
        ({"autoscaler": AUTOSCALER, "secrets": {"X": "a/b"}}, "autoscaler.env_file: is missing"),
        (
            {"autoscaler": {**AUTOSCALER, "nodes": NODES, "provider": {"type": "vsphere"}}, "workers__gpu": SPOT_GPUS},
            "workers.gpu.spot = True: what a spot machine is with provider vsphere",
        ),
        ({"autoscaler": AUTOSCALER, "workers__cpu__cpus": 1.5}, "cpus: must be whole numbers"),
        (
            {
                "workers": {"head": {"cpus": 1, "memory_gb": 2, "min": 1, "max": 1}},
                "autoscaler": {**AUTOSCALER, "nodes": {"head": {}}},
            },
            "workers.head: is the head's name",
        ),
    ],
)
def test_specs_that_ray_up_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoscaler_config(make_spec(**changes))
