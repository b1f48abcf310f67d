"""How large what a model says is, also of a model that is not in memory here; found out with a silent clip.

Axes: B clips of a shard, C tags, D features of an embedding, P steps in time.
"""

from collections.abc import Callable
from typing import NamedTuple

from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import Tagger, outputs_of_silence


class OutputSize(NamedTuple):
    """Sizes of one model's outputs for a clip."""

    tags: int  # of logits_BC
    features: int  # of embedding_BD
    grid: TimeGrid  # of its profile and of its frames_BPC, with P steps

    def of(self, kind: str) -> tuple[int, ...]:
        """The shape of what an edge carries, for one clip."""
        steps = self.grid.count
        shapes = {"logits": (self.tags,), "embedding": (self.features,), "temporal": (steps,)}
        return shapes.get(kind, (steps, self.tags))


class OutputSizes:
    """Those of the models of a run. Each is built for that, once, on the CPU."""

    def __init__(self, make_tagger: Callable[[str], Tagger]) -> None:
        self._make_tagger = make_tagger
        self._found: dict[str, OutputSize] = {}

    def __getitem__(self, name: str) -> OutputSize:
        if name not in self._found:
            tagger = self._make_tagger(name)
            silent = outputs_of_silence(tagger)
            grid = time_grid(tagger, silent.sequence_BPD.shape[1])
            self._found[name] = OutputSize(silent.logits_BC.shape[1], silent.embedding_BD.shape[1], grid)
        return self._found[name]
