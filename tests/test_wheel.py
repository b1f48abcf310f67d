"""The wheel built from the tree works where nothing else of ours is: code, recipes, tags and templates are in it."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git tracks, so that neither build folders nor stray files can help."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, (name.decode() for name in names)):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone; the packages that it needs come from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in ours.iterdir():
        if not entry.name.startswith(("__editable__", "antiphon", "_antiphon")) and entry.suffix != ".pth":
            (dependencies / entry.name).symlink_to(entry)
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder


def python(installed: Path, *arguments: str) -> str:
    """What the environment's Python prints, run where the tree cannot be imported from."""
    command = [str(installed / "bin" / "python"), *arguments]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, env={"HOME": str(installed)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in tracked if name.startswith(("workloads/", "orchestrator/", "cluster/"))}
    assert ours
    assert {name for name in ours if (ROOT / name).is_file()} == held


def test_recipes_and_a_dry_run_work_from_the_wheel(installed: Path) -> None:
    where = "import orchestrator, pathlib; print(pathlib.Path(orchestrator.__file__).parents[1])"
    assert Path(python(installed, "-c", where).strip()).is_relative_to(installed)
    assert "search-demo" in python(installed, "-m", "orchestrator.cli.app", "recipes").splitlines()
    assert "learns" in python(installed, "-m", "orchestrator.cli.app", "run", "demo", "--dry-run")
