"""JSON that leaves a process is written by `json_text`, which replaces secrets; elsewhere there is a reason."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# File -> why the text that `json.dumps` makes there is not stored or printed as it is.
REASONS = {
    "cluster/ceph.py": "the stack's own keys, in a folder of its owner",
    "cluster/process_registry.py": "the stack's own keys, in a folder of its owner",
    "orchestrator/artifacts/model_card.py": "the whole card is redacted",
    "orchestrator/cli/cluster.py": "gives the user the stack's own keys",
    "orchestrator/recipes/chosen.py": "values in memory, whose tuples become lists",
    "orchestrator/recipes/loader.py": "a value in memory, refused if it holds a secret",
    "orchestrator/reports/reproduce.py": "the whole page is redacted",
    "orchestrator/reports/run_page.py": "the whole page is redacted",
    "orchestrator/reports/search/formatting.py": "the whole page is redacted",
    "orchestrator/reports/search/page.py": "the whole page is redacted",
    "orchestrator/runs/records.py": "compared in memory",
    "orchestrator/runs/resume.py": "hashed",
    "orchestrator/scaffold/recipe_text.py": "a folder's path, read back as it is; loading refuses one with a secret",
    "orchestrator/search/samplers.py": "a choice of a recipe, in memory",
    "workloads/data/cache.py": "hashed",
    "workloads/data/clips.py": "hashed",
    "workloads/data/keywords.py": "the path of a computed clip, read back as it is",
    "workloads/data/formats/events.py": "hashed",
    "workloads/models/initial_weights.py": "compared in memory, and part of a message",
    "workloads/models/official/timm.py": "part of a message",
    "workloads/runtime/json_files.py": "is json_text",
}


def test_json_that_is_stored_or_printed_has_its_secrets_replaced() -> None:
    files = [path for name in ("cluster", "orchestrator", "workloads") for path in (ROOT / name).rglob("*.py")]
    plain = {str(path.relative_to(ROOT)) for path in files if re.search(r"\bjson\.dumps?\b", path.read_text())}
    assert plain == set(REASONS), "write it with workloads.runtime.json_files.json_text"
