"""A store as a teacher: the rows of a shard's clips, in the views of the shard, as a teacher's outputs.

Axes: B clips of a shard, C tags of the run, J tags that top k kept, D features of an embedding, P frames; where a
column has frames, they follow the tags: BJP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.edge import Edge
from workloads.data.shard import Shard, ViewKey, stored_view
from workloads.distill.frames import rolled_frames
from workloads.distill.sources import Outputs
from workloads.models.probabilities import probabilities
from workloads.models.profiles import TimeGrid
from workloads.runtime.rng import keyed_generator
from workloads.stores.description import Column
from workloads.stores.reader import Rows, StoreReader


@dataclass(eq=False)
class StoredTeacher:
    """The teacher of one edge; `place_C` says where in a row each tag of the run is, epochs go round the first
    `num_views` views.

    `stores_of_run.py` makes it for a store that fits the recipe.
    """

    edge: Edge
    reader: StoreReader
    column: str
    place_C: NDArray[np.int64]
    labels: str
    num_views: int

    @property
    def width(self) -> int:
        """Number of values of a row."""
        return self._column["width"]

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        read = {
            "logits": self._logits,
            "embedding": self._embedding,
            "frames": self._frames,
            "temporal": self._profile,
        }[self.edge.carries]
        return {self.edge.carries: read(shard)}

    @property
    def grid(self) -> TimeGrid:
        """Where the frames of a row are, in the view of which it is."""
        frames = self._column["frames"]
        return TimeGrid(frames["first_seconds"] - frames["hop_seconds"] / 2, frames["hop_seconds"], frames["count"])

    @property
    def _column(self) -> Column:
        return self.reader.store.description["columns"][self.column]

    def _frames(self, shard: Shard) -> Tensor:
        """Logits_BPC of frames that have, at the edge's temperature, the probabilities of the rows.

        Rows of clips that nobody rolled are rolled as the clips are; of mixtures the probabilities are mixed, each clip
        rolled by itself, as the waveforms are.
        """
        rows = self.reader.read(self.column, shard.clip_ids, self._views(shard))
        logits_BPC = self._logits_of_clips(rows, shard.keys).to(shard.x_BT.device).transpose(1, 2)
        p_BPC = (logits_BPC / self.edge.temperature).sigmoid()
        return self.edge.temperature * self._as_heard(p_BPC, shard).logit()

    def _profile(self, shard: Shard) -> Tensor:
        """Profiles p_BP, rolled and mixed as frames are; what the teacher of a mixture would say is not known."""
        rows = self.reader.read(self.column, shard.clip_ids, self._views(shard))
        p_BP1 = torch.from_numpy(rows.values.astype(np.float32)).to(shard.x_BT.device).transpose(1, 2)
        return self._as_heard(p_BP1, shard)[..., 0]

    def _as_heard(self, values_BPC: Tensor, shard: Shard) -> Tensor:
        """Probabilities of frames, rolled as the clips of the shard are where their rows are of others, and mixed."""
        if self.edge.view != "same":
            seconds = self.reader.store.description["views"]["clip_seconds"]
            values_BPC = rolled_frames(values_BPC, self.grid, shard, rate=round(shard.x_BT.shape[1] / seconds))
        return values_BPC if shard.mixture is None else shard.mixture.of(values_BPC)

    def _embedding(self, shard: Shard) -> Tensor:
        """Embedding_BD of the rows; of mixtures, the mixed ones: what the teacher would say of them is not known."""
        rows = self.reader.read(self.column, shard.clip_ids, self._views(shard))
        values_BD = torch.from_numpy(rows.values.astype(np.float32)).to(shard.x_BT.device)
        return values_BD if shard.mixture is None else shard.mixture.of(values_BD)

    def _logits(self, shard: Shard) -> Tensor:
        """Logits_BC that have, at the edge's temperature, the probabilities of the rows; of mixtures, the mixed ones.

        Probabilities are mixed, not logits, and after the temperature (reference/efficientat.md 4). Against such a
        target a loss has the gradient of CED's mixture of two losses too, since both are linear in the target. A clip
        without a row is taught by its labels, on its side of a mixture only.
        """
        rows = self.reader.read(self.column, shard.clip_ids, self._views(shard), missing="mark")
        logits_BC = self._logits_of_clips(rows, shard.keys).to(shard.x_BT.device)
        if not rows.known.all():
            known_B1 = torch.from_numpy(rows.known)[:, None].to(logits_BC.device)
            logits_BC = torch.where(known_B1, logits_BC, to_logits(shard.unmixed_y_BC, self.labels))
        if shard.mixture is None:
            return logits_BC
        tau = self.edge.temperature
        return tau * to_logits(shard.mixture.of(probabilities(logits_BC / tau, self.labels)), self.labels)

    def _views(self, shard: Shard) -> list[int]:
        return [stored_view(key, self.num_views) for key in shard.keys]

    def _logits_of_clips(self, rows: Rows, keys: Sequence[ViewKey]) -> Tensor:
        """Logits_BC of each clip alone, in the order of the run's tags; of frames BCP."""
        values = torch.from_numpy(rows.values.astype(np.float32))
        is_logits = self._column["holds"] == "logits"
        if rows.tags is None:
            logits_BC = values if is_logits else to_logits(values, self.labels)
        else:
            kept_BJ = probabilities(values, self.labels) if is_logits else values
            logits_BC = to_logits(self._filled(kept_BJ, torch.from_numpy(rows.tags), keys), self.labels)
        return logits_BC[:, self.place_C]

    def _filled(self, kept_BJ: Tensor, tags_BJ: Tensor, keys: Sequence[ViewKey]) -> Tensor:
        """Probabilities p_BC of all tags, from those that top k kept; with single labels they are made to sum to 1.

        Of frames BCP, each filled by itself.
        """
        left_out = max(1, len(self.place_C) - kept_BJ.shape[1])
        least_B1 = kept_BJ.min(dim=1, keepdim=True).values
        match self.edge.fill:
            case "zero":
                fill = torch.zeros_like(least_B1)
            case "last_mean":
                fill = least_B1 / left_out
            case "last_half":
                fill = least_B1 / 2
            case "last_random":
                draws_BC = self._draws(keys)
                fill = least_B1 * draws_BC.view(*draws_BC.shape, *[1] * (kept_BJ.ndim - 2))
            case "uniform":
                fill = torch.full_like(least_B1, 1 / len(self.place_C))
        frames = kept_BJ.shape[2:]
        places = tags_BJ.view(*tags_BJ.shape, *[1] * len(frames)).expand(kept_BJ.shape)
        p_BC = fill.expand(len(keys), len(self.place_C), *frames).clone().scatter_(1, places, kept_BJ)
        return p_BC / p_BC.sum(dim=1, keepdim=True) if self.labels == "single" else p_BC

    def _draws(self, keys: Sequence[ViewKey]) -> Tensor:
        """Numbers in [0, 1), the same for a clip's view in every process and epoch."""
        views, tags = self.num_views, len(self.place_C)
        draws = [keyed_generator("fill", key.clip_id, stored_view(key, views)).random(tags) for key in keys]
        return torch.from_numpy(np.stack(draws)).float()


def to_logits(p_BC: Tensor, labels: str) -> Tensor:
    """Logits_BC of these probabilities; infinite where one is 0 or 1, which the losses of edges allow."""
    p_BC = p_BC.clamp(0, 1)
    return p_BC.log() if labels == "single" else p_BC.logit()
