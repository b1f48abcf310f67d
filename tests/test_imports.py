"""Imports run one way: between packages, between folders, between files; each vendor has one owner."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
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
# Vendor module -> the only files, or folders, that may import it.
OWNERS = {
    "mlflow": {"orchestrator/tracking/"},
    "s3fs": {"orchestrator/storage/object_store.py"},
    # pyfunc_model.py is code inside a registered model: it runs where there is no orchestrator
    "fsspec": {"orchestrator/storage/object_store.py", "orchestrator/tracking/pyfunc_model.py"},
    "ray.tune": {"orchestrator/search/tune_runner.py", "orchestrator/search/schedulers.py"},
    "ray.train": {f"orchestrator/training/ray_{part}.py" for part in ("trainer", "worker", "network", "elastic")},
    "ray.job_submission": {"orchestrator/jobs/client.py"},
    "ray.serve": {"orchestrator/serving/deployment.py", "orchestrator/serving/server.py"},
    "fastapi": {"orchestrator/serving/"},
    "optuna": {"orchestrator/search/samplers.py", "orchestrator/reports/search/importance.py"},
    "plotly": {"orchestrator/reports/"},
    "sed_scores_eval": {"workloads/evaluate/psds.py"},
    "ruptures": {"workloads/evaluate/boxes.py"},
    "huggingface_hub": {"orchestrator/artifacts/hub_folder.py"},
    "sounddevice": {"workloads/data/microphone.py"},
}
# A folder, or a file outside of folders, -> the folders of its package whose files it may import. What a folder of this
# list imports may never come back to it: the test below draws the arrows and looks for circles too.
ARROWS = {
    "workloads/config": set(),
    "workloads/runtime": {"config"},
    "workloads/data": {"config", "runtime"},
    "workloads/models": {"config", "runtime"},
    "workloads/export": {"config", "runtime", "models"},
    "workloads/stores": {"config", "runtime"},
    "workloads/distill": {"config", "runtime", "data", "models", "stores"},
    "workloads/evaluate": {"config", "runtime", "data", "models", "distill"},
    "workloads/teaching": {"config", "runtime", "data", "models", "export", "evaluate", "stores"},
    "workloads/run.py": {"config", "runtime", "data", "models", "distill"},
    "workloads/train_step.py": {"config", "runtime", "data", "models", "distill", "evaluate", "run.py"},
    "workloads/train.py": {"runtime", "distill", "evaluate", "run.py", "train_step.py"},
    "workloads/__main__.py": {"config", "runtime", "run.py", "train.py"},
    "orchestrator/recipes": set(),
    "orchestrator/storage": set(),
    "orchestrator/tracking": {"storage", "recipes"},
    "orchestrator/runs": {"tracking", "storage", "recipes"},
    "orchestrator/training": {"runs", "tracking", "storage", "recipes"},
    "orchestrator/stores": {"storage"},
    "orchestrator/teaching": {"stores", "training", "runs", "storage", "recipes"},
    "orchestrator/artifacts": {"training", "runs", "tracking", "storage", "recipes"},
    "orchestrator/planning": {"training", "runs", "tracking", "storage", "recipes"},
    "orchestrator/scaffold": {"planning", "training", "storage", "recipes"},
    "orchestrator/search": {"training", "runs", "tracking", "storage", "recipes"},
    "orchestrator/study": {"training", "runs", "tracking", "storage", "recipes"},
    "orchestrator/jobs": {"runs", "storage"},
    "orchestrator/doctor": {"training", "tracking", "storage"},
    "orchestrator/serving": {"artifacts", "training", "storage"},
    "orchestrator/reports": {
        "serving",
        "study",
        "search",
        "artifacts",
        "planning",
        "runs",
        "tracking",
        "storage",
        "recipes",
    },
    "orchestrator/cli": {
        *(
            "reports",
            "search",
            "study",
            "artifacts",
            "doctor",
            "jobs",
            "planning",
            "serving",
            "teaching",
            "training",
            "runs",
            "scaffold",
            "tracking",
            "stores",
        ),
        *("storage", "recipes"),
    },
}
HEAVY = ("torch", "ray", "mlflow", "pandas")
LIGHT = ("workloads/config", "orchestrator/recipes", "cluster")


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


def file_of(name: str) -> str:
    """The file, relative to the root, that a dotted name of ours lies in: of a.b.c that is a/b/c.py, or else a/b.py."""
    for path in (Path(*name.split(".")), Path(*name.split(".")[:-1])):
        for found in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / found).is_file():
                return found.as_posix()
    raise AssertionError(f"{name}: no such file")


def folder_of(path: str) -> str:
    """workloads/models/official/ast.py lies in workloads/models; workloads/train.py is a place of its own."""
    return "/".join(path.split("/")[:2])


def violations(path: str, source: str) -> list[str]:
    """What the file at this path, relative to the root, imports against the rules."""
    package = path.split("/")[0]
    found = []
    for line, name in imported(source):
        if any(within(name, module) for module in FORBIDDEN[package]):
            found.append(f"{path}:{line}: {package} must not import {name}")
        for vendor, owners in OWNERS.items():
            if within(name, vendor) and not path.startswith(tuple(owners)):
                found.append(f"{path}:{line}: only {', '.join(sorted(owners))} may import {name}")
        if name.split(".")[0] == package and package != "cluster":
            here, there = folder_of(path), folder_of(file_of(name))
            if there != here and there.removeprefix(f"{package}/") not in ARROWS[here]:
                found.append(f"{path}:{line}: {here} must not import {there} ({name})")
    return found


def our_files() -> list[str]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def test_imports_run_one_way_and_vendors_have_one_owner() -> None:
    assert len(our_files()) > 100
    found = [line for path in our_files() for line in violations(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


@cache
def defined_in(path: str) -> set[str]:
    """The names that a file defines or imports at its top level, within `if` and `try` too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def unknown_names(source: str) -> list[str]:
    """What a source imports or uses of our own modules and that does not exist; type checkers do not see the tests."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    unknown: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in (*PACKAGES, "tests"):
            for alias in node.names:
                path = f"{node.module}.{alias.name}".replace(".", "/") + ".py"
                if (ROOT / path).is_file():
                    modules[alias.asname or alias.name] = path
                elif (ROOT / path).with_suffix("").is_dir():
                    continue
                elif alias.name not in defined_in(file_of(node.module)):
                    unknown.append(f"{node.module}.{alias.name}")
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return unknown + [
        f"{node.value.id}.{node.attr}"
        for node in used
        if isinstance(node.value, ast.Name)
        and node.value.id in modules
        and node.attr not in defined_in(modules[node.value.id])
        and not node.attr.startswith("__")
    ]


def test_what_is_used_of_a_module_exists() -> None:
    paths = [*our_files(), *(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))]
    found = {path: unknown for path in paths if (unknown := unknown_names((ROOT / path).read_text()))}
    assert not found


def test_an_unknown_name_is_caught() -> None:
    source = (
        "from workloads.evaluate import metrics\n"
        "from workloads.train import loop, no_such_loop\n"
        "metrics.score\nmetrics.no_such_score\n"
    )
    assert unknown_names(source) == ["workloads.train.no_such_loop", "metrics.no_such_score"]


def test_no_circle_ties_files_or_folders() -> None:
    """Imports within functions count too: a file that needs another one only later needs it all the same."""
    files = {
        path: {file_of(name) for _, name in imported((ROOT / path).read_text()) if name.split(".")[0] in PACKAGES}
        for path in our_files()
    }
    folders: dict[str, set[str]] = {}
    for path, needed in files.items():
        folders.setdefault(folder_of(path), set()).update(folder_of(other) for other in needed)
    assert circle(files) == []
    assert circle(folders) == []


def test_a_circle_is_caught() -> None:
    assert set(circle({"a": {"a", "b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def circle(needs: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, the first repeated at the end; empty where there is none. A node may need itself."""
    try:
        graphlib.TopologicalSorter({name: needed - {name} for name, needed in needs.items()}).prepare()
    except graphlib.CycleError as error:
        nodes: list[str] = error.args[1]
        return nodes
    return []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("workloads/train.py", "import ray"),
        ("workloads/train.py", "def late():\n    from orchestrator.storage import object_store"),
        ("workloads/models/mn.py", "if True:\n    import cluster.stack as stack"),
        ("workloads/data/batches.py", "from workloads.models.tagger import Tagger"),
        ("workloads/models/tagger.py", "from workloads.data import clips"),
        ("workloads/config/recipe.py", "from workloads.runtime.rng import keyed_seed"),
        ("cluster/stack.py", "from workloads import config"),
        ("cluster/stack.py", "import torch.nn"),
        ("cluster/ceph.py", "from timm import create_model"),
        ("orchestrator/training/driver.py", "import mlflow"),
        ("orchestrator/training/driver.py", "from ray import tune"),
        ("orchestrator/training/driver.py", "def late():\n    from orchestrator.reports import run_page"),
        ("orchestrator/runs/outcome.py", "from orchestrator.training.driver import run"),
        ("orchestrator/search/driver.py", "from ray.train import report"),
        ("orchestrator/reports/run_page.py", "from s3fs import S3FileSystem"),
        ("orchestrator/reports/run_page.py", "from orchestrator.training.driver import run"),
    ],
)
def test_the_checker_catches_a_violation(path: str, source: str) -> None:
    assert violations(path, "import json\n" + source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("orchestrator/training/ray_trainer.py", "import ray\nfrom ray.train import report\nimport cluster.stack"),
        ("orchestrator/cli/run.py", "from workloads.config import recipe\nfrom orchestrator.reports import run_page"),
        ("orchestrator/tracking/mlflow_run.py", "import mlflow.tracking"),
        ("workloads/train.py", "import raytracer, torch\nfrom workloads.distill.pool import torch"),
    ],
)
def test_the_checker_lets_what_is_allowed_pass(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_configuration_recipes_and_the_cluster_package_import_nothing_heavy() -> None:
    """In a process of its own, as a shell's user starts one."""
    modules = [path.removesuffix(".py").replace("/", ".") for path in our_files() if path.startswith(LIGHT)]
    modules = [name for name in modules if not name.endswith("__init__")]
    assert {"workloads.config.recipe", "orchestrator.recipes.loader", "cluster.stack"} <= set(modules)
    code = (
        "import importlib, json, sys\n"
        "came = {}\n"
        "for name in sys.argv[1].split(','):\n"
        "    importlib.import_module(name)\n"
        f"    came.update({{heavy: came.get(heavy, name) for heavy in {HEAVY} if heavy in sys.modules}})\n"
        "print(json.dumps(came))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join([*modules, "workloads.distill.schedule"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "heavy module: the first of ours that pulled it in"
