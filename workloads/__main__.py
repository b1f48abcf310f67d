"""`python -m workloads RESOLVED.json [FOLDER]`: train a resolved recipe in this process, without Ray and MLflow.

RESOLVED.json is what `antiphon run RECIPE --dry-run --json` prints. Event log, checkpoints and taggers are written to
FOLDER, by default named after the recipe, which must not exist.
"""

import shutil
import sys
from pathlib import Path

from workloads.config.recipe import Recipe, restore
from workloads.run import set_up
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EVENT_LOG, EventLog
from workloads.runtime.json_files import parse_json
from workloads.runtime.opener import LocalFiles
from workloads.runtime.redaction import redacting_stderr
from workloads.runtime.session import LocalSession
from workloads.train import loop


def main(arguments: list[str]) -> int:
    """Train a recipe; returns the exit code: 0 when done, 2 for a mistake of the user."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        recipe = restore(Recipe, parse_json(Path(arguments[0]).read_bytes(), arguments[0]))
    except (ValueError, OSError) as mistake:
        print(" ".join(str(mistake).split()), file=sys.stderr)
        return 2
    folder = Path(arguments[1] if len(arguments) == 2 else recipe.name)
    if folder.exists():
        print(f"{folder}: already exists; name another folder, or move it away", file=sys.stderr)
        return 2

    with EventLog(folder / EVENT_LOG) as event_log:
        session = LocalSession(
            work_dir=folder / "scratch",
            event_log=event_log,
            store=LocalCheckpointStore(folder),
            device=recipe.train.device,
        )
        try:
            run = set_up(recipe, session, files=LocalFiles())
        except ValueError as mistake:
            print(mistake, file=sys.stderr)
            return 2
        loop(run)
    shutil.rmtree(folder / "scratch")
    return 0


if __name__ == "__main__":
    with redacting_stderr():
        code = main(sys.argv[1:])
    sys.exit(code)
