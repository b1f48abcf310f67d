"""Which slice of the training folds validates: one that leaves every tag to training, if there is one.

Opens no file.
"""

from dataclasses import replace

from workloads.config.data import Data
from workloads.data.clips import Dataset
from workloads.data.splits import require_scorable, split


def choose_slice(dataset: Dataset, data: Data) -> tuple[int, tuple[str, ...]]:
    """The value of data.val_slice, and the tags that it takes from training: no model learns them.

    The lowest of equals; one that can be scored where one can. Raises ValueError as `split`.
    """
    found = [_losses(dataset, replace(data, val_slice=number)) for number in range(data.num_val_slices)]
    best = min(range(len(found)), key=lambda number: (found[number][0], len(found[number][1])))
    return best, found[best][1]


def _losses(dataset: Dataset, data: Data) -> tuple[bool, tuple[str, ...]]:
    """Whether validation has no score, and the tags that it takes from training."""
    parts = split(dataset, data)
    trained = {tag for clip in parts.train for tag in clip.tags}
    lost = {tag for clip in parts.val for tag in clip.tags} - trained
    try:
        require_scorable(dataset, parts, data, test=False)
    except ValueError:
        return True, tuple(sorted(lost))
    return False, tuple(sorted(lost))
