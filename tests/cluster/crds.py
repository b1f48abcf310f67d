"""KubeRay's custom resource definitions as JSON schemas, closed against keys that they do not name.

They are not part of the repository: ANTIPHON_KUBERAY_CRDS names the folder where they are as KubeRay publishes them.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

DEFAULT = Path(__file__).parents[2].parent / "shared" / "data" / "kuberay"
FILES = {
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayService": "ray.io_rayservices.yaml",
}


@cache
def closed_schema(kind: str) -> dict[str, Any]:
    """The schema of a whole object of that kind; skips the test where the definitions are missing."""
    folder = Path(os.environ.get("ANTIPHON_KUBERAY_CRDS", DEFAULT))
    if not (folder / FILES[kind]).is_file():
        pytest.skip(f"no definitions of KubeRay at {folder}; set ANTIPHON_KUBERAY_CRDS to a folder with {FILES[kind]}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((folder / FILES[kind]).read_text(), loader)
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own
    return schema


def mistakes(kind: str, manifest: dict[str, Any]) -> list[str]:
    """What of a manifest its schema refuses, each with its path."""
    found = jsonschema.Draft202012Validator(closed_schema(kind)).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def _closed(schema: Any) -> Any:
    """OpenAPI's int-or-string as JSON Schema has it; objects with properties take no others.

    The pods' own metadata is left open, since the published schema says nothing of it.
    """
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed
