"""How much of a tagger's profile over time lies inside the keyword, for clips that hold one at a known place.

The profile is the energy of the sequence for every network: it needs no head, no query and no attention, so models that
were taught when to listen and models that were not are measured alike (reference/tkd.md sections 6 and 9.2). Of a
network that sums up its sequence by attention of its own that attention is measured beside it: it is what an edge that
carries profiles teaches such a student. After a layer norm, where the sequence of a Transformer ends, energy is nearly
the same at all steps, and says nothing. Does not depend on training.

Axes: N clips of a set, B windows of a batch, P steps in time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workloads.data.batches import evaluation_batches
from workloads.data.clips import Clip
from workloads.data.events import Event
from workloads.data.prepare import PreparedData
from workloads.models.profiles import TimeGrid, energy_profile, time_grid
from workloads.models.tagger import Tagger
from workloads.runtime.placement import WorkerGroup

ENERGY, OWN = "attention_mass", "own_attention_mass"  # names of scores


def holds_keywords(prepared: PreparedData) -> bool:
    """Whether each clip of the data set is one keyword in noise, and nothing else is to be heard."""
    return prepared.recipe.data.format == "keywords"


def attention_masses(
    tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData, workers: WorkerGroup | None = None
) -> dict[str, Tensor]:
    """mass_N float64, 0 to 1, by score: the share between onset and offset of the keyword, ENERGY of the energy of the
    tagger's sequence, and OWN of its network's attention over time, if it has one.

    In eval mode; the tagger's mode is as before. With `workers` it is a collective call of theirs: they share the
    batches, and all of them get the whole.
    """
    was_training, size, workers = tagger.training, prepared.recipe.train.shard_size, workers or WorkerGroup()
    own: dict[int, dict[str, Tensor]] = {}  # by the number of the batch
    tagger.eval()
    for number in range(workers.rank, -(-len(clips) // size), workers.size):
        own[number] = _masses_of_batch(tagger, clips[number * size : (number + 1) * size], prepared)
    tagger.train(was_training)
    by_batch = {number: found for worker in workers.gather(own) for number, found in worker.items()}
    batches = [by_batch[number] for number in sorted(by_batch)]
    return {score: torch.cat([found[score] for found in batches]) for score in batches[0]}


def _masses_of_batch(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData) -> dict[str, Tensor]:
    """mass_B of some clips by score, from one forward."""
    ((rows, shard),) = evaluation_batches(
        clips, prepared.dataset, prepared.cache, prepared.recipe.data, at_once=len(clips)
    )
    assert rows == list(range(len(clips))), "a clip is one window"
    with torch.no_grad():
        shard = shard.to(next(tagger.parameters()).device)
        mel_BMF = tagger.front_end(shard.x_BT, shard.sound(tagger.front_end))
        sequence_BPD = tagger.outputs(mel_BMF).sequence_BPD.float()
        profiles = {ENERGY: energy_profile(sequence_BPD)}
        if (log_BP := tagger.backbone.log_attention(sequence_BPD)) is not None:
            profiles[OWN] = log_BP.exp()
    grid, events = time_grid(tagger, sequence_BPD.shape[1]), [keyword_of(clip) for clip in clips]
    return {
        score: mass_within(p_BP.cpu(), grid, events, seconds=tagger.clip_seconds) for score, p_BP in profiles.items()
    }


def mass_within(p_BP: Tensor, grid: TimeGrid, events: Sequence[Event], *, seconds: float) -> Tensor:
    """mass_B float64: the share of each profile inside its event; of a step that it meets in part, that part.

    Of a step that reaches beyond the clip of so many seconds the part within counts as the whole.
    """
    onset_B1, offset_B1 = torch.tensor([(event.onset, event.offset) for event in events], dtype=torch.float64).T[
        ..., None
    ]
    bounds = (grid.first + grid.step * torch.arange(grid.count + 1, dtype=torch.float64)).clamp(0, seconds)
    starts_P, ends_P = bounds[:-1], bounds[1:]
    inside_BP = (torch.minimum(ends_P, offset_B1) - torch.maximum(starts_P, onset_B1)).clamp(min=0)
    covered_BP = inside_BP / (ends_P - starts_P).clamp(min=torch.finfo(torch.float64).tiny)
    return (p_BP.double() * covered_BP).sum(1) / p_BP.double().sum(1)


def mass_of_flat_profiles(clips: Sequence[Clip], *, seconds: float) -> float:
    """The mean mass of a profile that is the same at all times: the share of the clips that keywords last."""
    events = [keyword_of(clip) for clip in clips]
    return sum(event.offset - event.onset for event in events) / (len(events) * seconds)


def keyword_of(clip: Clip) -> Event:
    assert clip.events is not None, "clips of keywords know when they sound"
    (event,) = clip.events
    return event
