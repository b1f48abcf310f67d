"""The one-way rule between the packages, one owner per vendor, and what must import without anything heavy."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("workloads", "orchestrator", "cluster")

# Package -> what it must not import.
FORBIDDEN = {
    "workloads": {"orchestrator", "cluster", "ray", "mlflow", "s3fs"},
    "cluster": {"orchestrator", "workloads", "torch", "torchaudio", "torchvision", "timm", "mlflow", "s3fs"},
    "orchestrator": set(),
}
# Vendor module -> the only files that may import it.
OWNERS = {
    # served.py is code inside a registered model: it runs where there is no orchestrator
    "mlflow": {"orchestrator/tracking.py", "orchestrator/registry.py", "orchestrator/served.py"},
    "s3fs": {"orchestrator/storage.py"},
    "fsspec": {"orchestrator/storage.py", "orchestrator/served.py"},
    "ray.tune": {"orchestrator/tuning.py"},
    "ray.train": {"orchestrator/run.py", "orchestrator/worker.py"},
    "ray.job_submission": {"cluster/submit.py"},
}
HEAVY = ("torch", "ray", "mlflow", "pandas")
LIGHT = (
    "workloads.config.recipe",
    "workloads.config.schedules",
    "workloads.distill.schedule",
    "orchestrator.recipes.loader",
)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of whatever a source imports, wherever it does; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the package's name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def violations(path: str, source: str) -> list[str]:
    """What the file at this path, relative to the root, imports against the rules."""
    package = path.split("/")[0]
    found = []
    for line, name in imported(source):
        if any(within(name, module) for module in FORBIDDEN[package]):
            found.append(f"{path}:{line}: {package} must not import {name}")
        for vendor, owners in OWNERS.items():
            if within(name, vendor) and path not in owners:
                found.append(f"{path}:{line}: only {', '.join(sorted(owners))} may import {name}")
    return found


def test_imports_run_one_way_and_vendors_have_one_owner() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 10
    found = [line for path in paths for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("workloads/train.py", "import ray"),
        ("workloads/train.py", "def late():\n    from orchestrator.storage import open_uri"),
        ("workloads/models/mn.py", "if True:\n    import cluster.stack as stack"),
        ("cluster/stack.py", "from workloads import config"),
        ("cluster/stack.py", "import torch.nn"),
        ("cluster/doctor.py", "from timm import create_model"),
        ("orchestrator/run.py", "import mlflow"),
        ("orchestrator/run.py", "from ray import tune"),
        ("orchestrator/search.py", "from ray.train import report"),
        ("orchestrator/report.py", "from s3fs import S3FileSystem"),
    ],
)
def test_the_checker_catches_a_violation(path: str, source: str) -> None:
    assert violations(path, "import json\n" + source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "orchestrator/run.py",
            "import ray\nfrom ray.train import report\nfrom workloads import config\nimport cluster.stack",
        ),
        ("orchestrator/tracking.py", "import mlflow.tracking"),
        ("workloads/train.py", "import raytracer, torch"),
        ("cluster/submit.py", "from ray.job_submission import JobSubmissionClient"),
    ],
)
def test_the_checker_lets_what_is_allowed_pass(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_parsing_a_recipe_and_the_cluster_package_import_nothing_heavy() -> None:
    """In a process of its own, as a shell's user starts one."""
    cluster = [f"cluster.{path.stem}" for path in sorted((ROOT / "cluster").glob("*.py")) if path.stem != "__init__"]
    assert "cluster.stack" in cluster
    code = (
        "import importlib, json, sys\n"
        "came = {}\n"
        "for name in sys.argv[1].split(','):\n"
        "    importlib.import_module(name)\n"
        f"    came.update({{heavy: came.get(heavy, name) for heavy in {HEAVY} if heavy in sys.modules}})\n"
        "print(json.dumps(came))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join([*LIGHT, *cluster])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "heavy module: the first of ours that pulled it in"
