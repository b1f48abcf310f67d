"""The documents match the repository: links, paths, commands, recipes, targets and tests that they name exist.

Reads Markdown, the command line's parameters and the recipe loader. Runs no command and needs no network.
"""

import ast
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.app import app
from orchestrator.cli.submitted_command import KINDS
from orchestrator.recipes.loader import (
    load_recipe,
    load_teach_recipe,
    shipped_names,
    shipped_study_names,
    shipped_teach_names,
)
from orchestrator.study.plan import StudyPlan, load_plan
from tests.test_imports import ARROWS, PACKAGES
from workloads.config.recipe import Recipe
from workloads.config.teach import TeachRecipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
README_LINES = 150
TOP = ("workloads", "orchestrator", "cluster", "tests", "docs", ".ci")
RECIPE_PARAMETERS = ("recipe", "data", "int8", "teach_recipe", "study")  # parameters of commands that name a recipe
LOADERS: dict[str, tuple[Any, Any]] = {  # how a parameter's recipe is loaded, and which are shipped; others: a run's
    "teach_recipe": (load_teach_recipe, shipped_teach_names),
    "study": (load_plan, shipped_study_names),
}
PROGRAMS = ("antiphon", "make", "pytest")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
TREE = re.compile(r"( *)([\w.]+(?:/|\.py)) +\S.*")
EVAL = re.compile(r'^eval "\$\((.+?)\)"')
TARGET = re.compile(r"^([\w-]+):(?!=)", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One Markdown file, split into fenced blocks, code spans and the prose around them."""

    path: str  # relative to the root
    text: str

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Fenced blocks: (language, content)."""
        return [(match[1], match[2]) for match in FENCE.finditer(self.text)]

    @property
    def outside(self) -> str:
        return FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        return SPAN.findall(self.outside)

    @property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub derives them; a repeated one gets -1, -2 ..."""
        found: dict[str, int] = {}
        anchors = set()
        for heading in HEADING.findall(self.outside):
            words = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            count = found.get(words, 0)
            anchors.add(f"{words}-{count}" if count else words)
            found[words] = count + 1
        return anchors


def document(path: str) -> Document:
    return Document(path, (ROOT / path).read_text())


def dead_links(page: Document) -> list[str]:
    """Relative links and images whose file or anchor does not exist."""
    problems = []
    for match in LINK.finditer(SPAN.sub("", page.outside)):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / page.path).parent / target
        if target and not file.exists():
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in (Document(target, file.read_text()) if target else page).anchors:
            problems.append(f"{link}: no such heading")
    return problems


def missing_paths(page: Document) -> list[str]:
    """Code spans that look like a file or folder of this repository and are none; `a/b.py::name` names a definition.

    Python files are also found by their bare name, wherever they lie; those that a command writes, by their template's.
    """
    problems = []
    for span in page.spans:
        path, _, name = span.partition("::")
        if not PATH.fullmatch(path):
            continue
        ours = path.split("/")[0] in TOP and "/" in path
        if ours and not (ROOT / path).exists():
            problems.append(f"{span}: no such file or folder")
        elif not ours and path.endswith(".py") and not (found_below(path) or found_below(f"{path}.j2")):
            problems.append(f"{span}: no file of that name")
        elif name and name not in definitions((ROOT / path).read_text()):
            problems.append(f"{span}: no such function or class")
    return problems


def found_below(name: str) -> bool:
    return any(next((ROOT / top).rglob(name), None) for top in TOP)


def definitions(source: str) -> set[str]:
    """Functions and classes of a source, methods as Class.method."""
    tops = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    methods = {
        f"{top.name}.{node.name}"
        for top in tops
        if isinstance(top, ast.ClassDef)
        for node in top.body
        if isinstance(node, ast.FunctionDef)
    }
    return {top.name for top in tops} | methods


def tree_paths(page: Document) -> set[str]:
    """The files and folders of annotated trees: blocks whose every line is an indented name and a remark."""
    found = set()
    for _, content in page.blocks:
        rows = [TREE.fullmatch(line) for line in content.splitlines()]
        folders: dict[int, str] = {}  # indentation -> folder
        for row in rows if all(rows) else ():
            assert row is not None
            depth = len(row[1])
            folder = next((name for above, name in sorted(folders.items(), reverse=True) if above < depth), "")
            found.add(folder + row[2])
            folders = {above: name for above, name in folders.items() if above < depth} | {depth: folder + row[2]}
    return found


def commands(page: Document) -> Iterator[tuple[list[str], bool]]:
    """The commands of `PROGRAMS` in a page, split into words, and whether each is complete: one of a block is.

    A code span may leave arguments out, with `...` or without.
    """
    for language, content in page.blocks:
        if language not in ("toml", "json", "python"):
            for line in content.replace("\\\n", " ").splitlines():
                if words := command_in(line):
                    yield words, True
    for span in page.spans:
        if words := command_in(span):
            yield words, False


def command_in(line: str) -> list[str] | None:
    """The words of a command, from the program's name on; None where the line runs none of `PROGRAMS`."""
    line = EVAL.sub(r"\1", line.strip().removeprefix("$ "))
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an unbalanced quote: prose in a block of text
        return None
    if words[:1] == ["ray"] and "--" in words:
        words = words[words.index("--") + 1 :]
    while words and ("=" in words[0] or words[0].endswith("python") or words[0] == "-m"):
        words = words[1:]
    program = words[0].rsplit("/", 1)[-1] if words else ""
    return [program, *words[1:]] if program in PROGRAMS else None


def wrong_command(words: list[str], *, complete: bool) -> str:
    """What is wrong with a command of a document; empty where nothing is."""
    check = {"antiphon": wrong_antiphon, "make": wrong_make, "pytest": wrong_pytest}[words[0]]
    return check(words[1:], complete=complete)


def wrong_antiphon(words: list[str], *, complete: bool) -> str:
    """Walk the command tree, then parse the options: all of them, or only their names where `complete` is false."""
    command: Any = typer.main.get_command(app)
    submittable = command.commands
    while words and not words[0].startswith("-") and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return f"{words[0]}: no such command of antiphon"
    submitted = [submittable[kind] for kind in KINDS] if command.name == "submit" else []
    parameters = [parameter for taker in (command, *submitted) for parameter in taker.params]
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--") and word.split("=")[0] not in {*known, "--help"}:
            return f"{word}: no such option"
    if not complete or (hasattr(command, "commands") and not command.params):
        return ""
    try:
        values = command.make_context("antiphon", [*words]).params
    except Exception as error:  # Typer's own copy of click has the classes
        return f"{' '.join(words)}: {getattr(error, 'message', error)}"
    if submitted:
        given = values["arguments"]
        return wrong_antiphon(given if given[0] in KINDS else ["run", *given], complete=True)
    return wrong_recipe(values)


def wrong_recipe(values: dict[str, Any]) -> str:
    """Whether a command's recipe is shipped and takes its settings; files and PLACEHOLDERS are the reader's."""
    for parameter in RECIPE_PARAMETERS:
        name = values.get(parameter) or ""
        if not name or name.isupper() or name.endswith((".toml", ".json")):
            continue
        load, shipped = LOADERS.get(parameter, (load_recipe, shipped_names))
        if name not in shipped():
            return f"{name}: no such recipe"
        try:
            load(name, values.get("settings"))
        except ValueError as error:
            return f"{name}: {error}"
    return ""


def wrong_make(words: list[str], *, complete: bool) -> str:
    targets = TARGET.findall((ROOT / "Makefile").read_text())
    unknown = [word for word in words if "=" not in word and word not in targets]
    return f"{unknown[0]}: no such target" if unknown else ""


def wrong_pytest(words: list[str], *, complete: bool) -> str:
    """Whether paths, tests and markers exist."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {marker.split(":")[0] for marker in options["markers"]}
    before = ""
    for word in words:
        path, _, name = word.partition("::")
        if before == "-m":
            unknown = set(re.findall(r"\w+", word)) - markers - {"and", "or", "not"}
            if unknown:
                return f"-m {word}: no such marker"
        elif not word.startswith("-") and before not in ("-k", "-p"):
            if not (ROOT / path).exists():
                return f"{word}: no such file"
            if name and name not in definitions((ROOT / path).read_text()):
                return f"{word}: no such test"
        before = word
    return ""


def wrong_toml(content: str, folder: Path) -> str:
    """Whether a block of TOML is one, and a recipe if it is a whole one: it builds on another, or has models."""
    try:
        values = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        return f"no TOML: {error}"
    if not {"extends", "models", "teachers"} & {*values}:
        return ""
    try:
        load_block(content, folder)
    except ValueError as error:
        return str(error)
    return ""


def load_block(content: str, folder: Path, *settings: str) -> Recipe | TeachRecipe | StudyPlan:
    """What a block describes; a study with a folder of data, without which there is none of real audio."""
    file, values = folder / "block.toml", tomllib.loads(content)
    file.write_text(content)
    if "folds" in values:
        return load_plan(str(file), [*settings, "data.root=DIR"])
    load: Any = load_teach_recipe if "teachers" in values else load_recipe
    return load(str(file), list(settings))


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("check", [dead_links, missing_paths])
def test_links_and_paths_exist(path: str, check: Callable[[Document], list[str]]) -> None:
    assert not check(document(path))


@pytest.mark.parametrize("path", DOCUMENTS)
def test_commands_exist(path: str) -> None:
    checked = [
        (shlex.join(words), wrong_command(words, complete=complete)) for words, complete in commands(document(path))
    ]
    assert not [entry for entry in checked if entry[1]]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_blocks_of_toml_are_recipes(path: str, tmp_path: Path) -> None:
    found = [wrong_toml(content, tmp_path) for language, content in document(path).blocks if language == "toml"]
    assert not [problem for problem in found if problem]


def test_the_recipe_explained_line_by_line_is_the_shipped_demo(tmp_path: Path) -> None:
    blocks = [content for language, content in document("docs/recipes.md").blocks if language == "toml"]
    assert load_block(blocks[0], tmp_path) == load_recipe("demo")


def test_the_readme_is_short_and_nothing_is_left_out() -> None:
    """Every command is shown in a block, every shipped recipe in docs/recipes.md, every page linked in the README."""
    readme = document("README.md")
    assert len(readme.text.splitlines()) <= README_LINES
    assert [path for path in DOCUMENTS if path != readme.path and f"]({path})" not in readme.text] == []
    shown = {words[1] for path in DOCUMENTS for words, complete in commands(document(path)) if complete and words[1:]}
    tree: Any = typer.main.get_command(app)
    assert set(tree.commands) - shown == set()
    shipped = {*shipped_names(), *shipped_teach_names(), *shipped_study_names()}
    assert shipped - set(document("docs/recipes.md").spans) == set()


def test_the_tree_of_the_readme_is_the_repository_s() -> None:
    """Every file and folder of the tree exists, and no folder of the packages is left out."""
    shown = tree_paths(document("README.md"))
    assert [path for path in shown if not (ROOT / path).exists()] == []
    folders = {
        path.parent.relative_to(ROOT).as_posix() for top in PACKAGES for path in (ROOT / top).glob("*/__init__.py")
    }
    assert folders - {path.rstrip("/") for path in shown} == set()


def test_the_arrows_between_folders_are_those_that_hold() -> None:
    """The table of docs/architecture.md against what tests/test_imports.py enforces."""
    shown = {}
    for line in document("docs/architecture.md").text.splitlines():
        cells = line.split("|")
        if line.startswith(tuple(f"| `{top}/" for top in PACKAGES)) and len(cells) == 4:
            shown |= {folder.rstrip("/"): set(SPAN.findall(cells[2])) for folder in SPAN.findall(cells[1])}
    assert shown == ARROWS


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (dead_links, "[a page](docs/nowhere.md)"),
        (dead_links, "![a picture](docs/nowhere.png)"),
        (dead_links, '<img src="docs/nowhere.svg">'),
        (dead_links, "# One heading\n\n[there](#another-heading)"),
        (dead_links, "[there](docs/numbers.md#no-such-heading)"),
        (missing_paths, "`workloads/nowhere.py`"),
        (missing_paths, "`orchestrator/nowhere/`"),
        (missing_paths, "`nowhere.py`"),
        (missing_paths, "`workloads/train.py::no_such_function`"),
    ],
)
def test_the_checkers_find_dead_links_and_paths(check: Callable[[Document], list[str]], text: str) -> None:
    assert check(Document("README.md", text))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (dead_links, "# One, two: `three`\n\n[there](#one-two-three) [out](https://example.org/nowhere)"),
        (dead_links, "`[text](nowhere.md)` is how a link is written\n\n```\n[text](nowhere.md)\n```"),
        (missing_paths, "`workloads/train.py::loop` `workloads/data/` `train.py` `RUN/models/cnn` `s3://b/p` `a / b`"),
    ],
)
def test_the_checkers_let_what_is_right_pass(check: Callable[[Document], list[str]], text: str) -> None:
    assert check(Document("README.md", text)) == []


@pytest.mark.parametrize(
    "line",
    [
        "antiphon fly demo",
        "antiphon data fly demo",
        ".venv/bin/antiphon run demo --no-such-option",
        "antiphon run demo --workers two",
        "antiphon run",
        "antiphon run demo esc10",
        "antiphon run dmeo",
        "antiphon run demo --set train.no_such_key=1",
        "antiphon study demo",
        "antiphon study study-demo --set train.no_such_key=1",
        "antiphon evaluate RUN/models/cnn --data dmeo",
        'eval "$(antiphon cluster upp)"',
        "make no-such-target",
        "FOLDER=x make no-such-target",
        "pytest tests/test_nowhere.py",
        "pytest tests/test_docs.py::test_nowhere",
        ".venv/bin/python -m pytest -m no_such_marker",
    ],
)
def test_the_checkers_find_wrong_commands(line: str) -> None:
    ((words, complete),) = commands(Document("README.md", f"```\n{line}   # a comment\n```\n"))
    assert wrong_command(words, complete=complete)


@pytest.mark.parametrize(
    "line",
    [
        "antiphon run demo --set train.seed=1 \\\n    --local",
        'eval "$(antiphon cluster up --s3 rgw)"',
        "antiphon models --latency --only mn",
        "ray job submit --address http://HEAD:8265 -- antiphon run my.toml --address auto",
        "TORCH_BACKEND=cpu make install",
        ".venv/bin/python -m pytest tests/test_docs.py -k docs -m 'slow or bench'",
    ],
)
def test_the_checkers_let_right_commands_pass(line: str) -> None:
    ((words, complete),) = commands(Document("README.md", f"```\n{line}\n```\n"))
    assert wrong_command(words, complete=complete) == ""


def test_a_tree_is_read_by_its_indentation() -> None:
    page = Document("README.md", "```\na/   one\n  b/   two\n    c.py   three\n  d.py   four\n```\n")
    assert tree_paths(page) == {"a/", "a/b/", "a/b/c.py", "a/d.py"}


def test_a_code_span_may_leave_arguments_out_but_not_invent_options() -> None:
    page = Document("README.md", "`antiphon run ... --dry-run`, `antiphon run ... --dry-walk`, `antiphon fly`")
    assert [bool(wrong_command(words, complete=complete)) for words, complete in commands(page)] == [False, True, True]


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ('extends = "demo"\n[train]\nseed = 1\n', True),
        ("[search]\ntrials = 4\n", True),
        ('extends = "demo"\n[train]\nno_such_key = 1\n', False),
        ('[teachers.cnn]\nuri = "RUN/models/cnn"\n', True),
        ('[teach]\nno_such_key = 1\n[teachers.cnn]\nuri = "RUN/models/cnn"\n', False),
        ("trials = = 4\n", False),
    ],
)
def test_the_checkers_read_toml(content: str, right: bool, tmp_path: Path) -> None:
    assert (wrong_toml(content, tmp_path) == "") is right
