"""Published data sets by their layout: their own readers know tags, folds and recordings better than a look can."""

from collections.abc import Sequence
from dataclasses import dataclass

from workloads.config.data import OWN_TEST, OWN_VALIDATION, SEVERAL_TAGS

MARKERS = {  # value of data.format -> files that only such a data set has
    "esc50": ("meta/esc50.csv",),
    "fsd50k": ("FSD50K.ground_truth/dev.csv", "FSD50K.ground_truth/eval.csv"),
    "openmic": ("openmic-2018-aggregated-labels.csv",),
    "speechcommands": ("testing_list.txt", "validation_list.txt"),
    "urbansound8k": ("metadata/UrbanSound8K.csv",),
}


@dataclass(frozen=True)
class Published:
    """A published data set."""

    format: str  # the value of data.format

    @property
    def labels(self) -> str:
        return "multi" if self.format in SEVERAL_TAGS else "single"

    @property
    def has_split(self) -> bool:
        """Whether it names its test clips."""
        return self.format in OWN_TEST

    @property
    def has_validation(self) -> bool:
        return self.format in OWN_VALIDATION


def published_layout(others: Sequence[str]) -> Published | None:
    """The published data set whose files these are, if they are one's."""
    present = {*others}
    return next((Published(format) for format, files in MARKERS.items() if present.issuperset(files)), None)
