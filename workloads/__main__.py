"""`python -m workloads RESOLVED.json [FOLDER]`: train a resolved recipe in this process, with torch and nothing else.

It takes what `antiphon run RECIPE --dry-run --json` prints, and leaves spool, checkpoints and taggers in FOLDER.
"""

import json
import shutil
import sys
from pathlib import Path

from workloads.config import Recipe, restore
from workloads.session import LocalSession
from workloads.spool import Spool
from workloads.train import train


def main(arguments: list[str]) -> int:
    """Train; exit code 0 when done, 2 for a wrong call."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    recipe = restore(Recipe, json.loads(Path(arguments[0]).read_text()))
    folder = Path(arguments[1] if len(arguments) == 2 else recipe.name)

    def keep(finished: Path, name: str) -> str:
        return str(shutil.move(finished, folder / name))

    with Spool(folder / "spool.jsonl") as spool:
        train(recipe, LocalSession(work_dir=folder, spool=spool, publish=keep, device=recipe.train.device))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
