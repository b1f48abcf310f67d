"""The wheel built from the tree works where nothing else of ours is: code, recipes, tags and templates are in it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.installed import ROOT, build_wheel, install
from workloads.runtime.version import VERSION

EXTRA = re.compile(r"antiphon\[([\w,]+)\]")
# These run in the environment with the wheel; one process for several commands, since each imports torch for seconds.
COMMAND = """
import contextlib, io, json, sys
from orchestrator.cli.app import main

def command(*arguments):
    sys.argv = ["antiphon", *arguments]
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main()
    said.flush()
    return " ".join(said.buffer.getvalue().decode().split())
"""
DATA_FILES = f"""{COMMAND}
print(json.dumps({{
    "recipes": command("recipes"),
    "study": command("study", "study-demo", "--dry-run"),
    "spec": command("cluster", "render", "example", "--to", "kuberay"),
}}))
"""
# What is asked of an environment without extras, by the extra that it needs.
WITHOUT_EXTRAS = """
from pathlib import Path
from workloads.data.containers import NoDecoder, decode_container
from workloads.data.microphone import open_microphone
from workloads.models.pretrained import read_pretrained

def call(function, *arguments, **options):
    try:
        return f"{function.__name__} has not failed: {function(*arguments, **options)}"
    except (ValueError, NoDecoder) as error:
        return str(error)

Path("outputs.hdf").write_bytes(b"")
print(json.dumps({
    "av": call(decode_container, b"", "mp4", max_samples=1),
    "boxes": command("tag", "CHECKPOINT", "clip.wav", "--events", "--boxes"),
    "export": command("export", "CHECKPOINT", "cnn.onnx", "--to", "onnx"),
    "hdf5": command("store", "import", "outputs.hdf", "--from", "dcase24", "--out", "store"),
    "hub": command("export", "CHECKPOINT", "cnn", "--to", "hub"),
    "mic": call(open_microphone, 16_000),
    "postgres": command("run", "demo", "--local", "--tracking", "postgresql://me:secret@host/mlflow"),
    "pretrained": call(read_pretrained, "pretrained:efficientnet_lite0"),
    "psds": command("evaluate", "CHECKPOINT", "--data", "frames-demo", "--psds"),
    "serve": command("serve", "CHECKPOINT"),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def about(wheel: Path) -> Message:
    """The wheel's metadata, which an index shows."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, about: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and no extras."""
    return install(wheel, about.get_all("Requires-Dist", []), tmp_path_factory.mktemp("environment"))


def output(program: Path, *arguments: str) -> str:
    """What a program prints, run where the tree cannot be imported from."""
    home = program.parents[1]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(program), *arguments], cwd=home, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in tracked if name.startswith(("workloads/", "orchestrator/", "cluster/"))}
    assert ours
    assert {name for name in ours if (ROOT / name).is_file()} == held


def test_the_metadata_say_the_version_the_pythons_and_the_extras(about: Message) -> None:
    """One version everywhere; the Pythons are the one of the tests and those that `make check` reads the code as."""
    assert about["Version"] == VERSION
    pythons = re.findall(r"--python-version ([\d.]+)", (ROOT / "Makefile").read_text())
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    oldest = settings["mypy"]["python_version"]
    assert about["Requires-Python"] == f">={oldest}"
    assert settings["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    said = [line.rpartition(":: ")[2] for line in about.get_all("Classifier", []) if ":: Python :: 3." in line]
    assert said == [oldest, *pythons]
    named = {name for path in tracked_texts() for group in EXTRA.findall(path.read_text()) for name in group.split(",")}
    assert named - {*about.get_all("Provides-Extra", [])} == set()


def tracked_texts() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [ROOT / name for name in names if not name.startswith("tests/") and (ROOT / name).is_file()]


def test_the_changelog_has_the_version_on_top() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("[Unreleased]", f"[{VERSION}]")
    released = [heading for heading in headings if heading != "[Unreleased]"]
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in released)


def test_commands_run_from_the_wheel(installed: Path) -> None:
    where = "import orchestrator, pathlib; print(pathlib.Path(orchestrator.__file__).parents[1])"
    assert Path(output(installed / "python", "-c", where).strip()).is_relative_to(installed.parent)
    antiphon = installed / "antiphon"
    assert output(antiphon, "--version") == f"antiphon {VERSION}\n"
    assert "serve" in output(antiphon, "--help")
    assert "learns" in output(antiphon, "run", "demo", "--dry-run")
    said = json.loads(output(installed / "python", "-c", DATA_FILES))
    assert {"demo", "search-demo", "study-demo", "teach-demo"} <= {*said["recipes"].split()}
    assert "control" in said["study"]
    assert "kind: RayCronJob" in said["spec"]


def test_what_needs_an_extra_names_it(installed: Path) -> None:
    said = json.loads(output(installed / "python", "-c", COMMAND + WITHOUT_EXTRAS))
    missing = {extra: message for extra, message in said.items() if f"pip install 'antiphon[{extra}]'" not in message}
    assert missing == {}
    assert "secret" not in said["postgres"]


@pytest.mark.slow
def test_an_index_has_all_that_the_wheel_needs(wheel: Path, tmp_path: Path) -> None:
    """An empty environment, the pinned versions, and a run in it; skipped where no index can be reached."""
    python, uv = tmp_path / "bin" / "python", shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("no uv beside this Python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    if done.returncode and ("Failed to fetch" in done.stderr or "error sending request" in done.stderr):
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    values = ("data.synthetic_clips=60", "schedule.burn_in=4", "schedule.period=4", "schedule.turns=2")
    settings = [*(word for value in values for word in ("--set", value)), "--no-compare"]
    outcome = output(tmp_path / "bin" / "antiphon", "run", "demo", "--local", "--tracking", "none", "--json", *settings)
    assert json.loads(outcome.splitlines()[-1])["status"] == "done"
