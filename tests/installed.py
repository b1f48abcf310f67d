"""Environments as `pip install antiphon` makes them: the wheel of this tree, and of other packages what it requires.

The packages come from the environment that runs the tests, so that no index is asked.
"""

import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def build_wheel(copy: Path, out: Path) -> Path:
    """Built from what git tracks, copied to `copy`, so that neither build folders nor stray files can help."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, (name.decode() for name in names)):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.strip().splitlines()[-1]


def install(wheel: Path, requirements: Iterable[str], folder: Path) -> Path:
    """A virtual environment in `folder` with the wheel, and links to what `requirements` bring; its `bin`."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in {entry for name in closure(requirements) for entry in top_entries(name)}:
        (dependencies / entry.name).symlink_to(entry)
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    # a tree in PYTHONPATH that was built there once counts for pip as installed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that an installer would take for requirements, and for what those require here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [requirement for text in requirements if (requirement := Requirement(text)) and applies(requirement, ())]
    while queue:
        requirement = queue.pop()
        key = (requirement.name.lower(), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            needs = map(Requirement, metadata.requires(requirement.name) or [])
            queue += [need for need in needs if applies(need, requirement.extras)]
    return {name for name, _ in seen}


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def top_entries(name: str) -> Iterator[Path]:
    """What a distribution has put into the folder of packages."""
    distribution = metadata.distribution(name)
    tops = {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}
    return (Path(str(distribution.locate_file(top))) for top in tops if not top.endswith(".pth"))
