"""Predicts the cost of a run: steps, clips, FLOPs and bytes. Trains nothing.

The prediction depends on the recipe's phases, the sizes of its models and the numbers of its clips; `measure.py`
compares it with a short run. A FLOP is one multiplication or addition, two per multiply-add (MAC).
"""

from dataclasses import dataclass

from orchestrator.planning.checkpoints import planned_checkpoints, steps_by_phase, sum_of_largest, validations_in
from workloads.config.edge import Edge
from workloads.config.recipe import Recipe
from workloads.data.manifest import read_dataset
from workloads.data.splits import require_full_batch, require_two_tags, split
from workloads.distill.schedule import Phase
from workloads.distill.store_checks import check_stores
from workloads.models.size import Size, model_size
from workloads.runtime.opener import Opener

HEADER_BYTES = 128  # of a .npy file with one axis
SAMPLE_BYTES = 2  # int16, as `workloads/data/cache.py` stores clips
LOGIT_BYTES = 2  # fp16, as a store of logits would (reference/cmkd.md 3.2)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Numbers of clips in each part of the data, and of tags."""

    train: int
    tags: int
    val: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The cost of one model. FLOPs are those of networks, without front ends, losses and optimizers."""

    params: int
    macs: int  # of one forward of one clip
    own_steps: int
    taught_steps: int
    clips_seen: int  # in its own steps
    epochs: float
    learn_flops: int  # forward and backward, counted as three forwards
    teach_flops: int
    score_flops: int
    weight_bytes: int
    optimizer_bytes: int
    store_view_bytes: int  # of its logits of one view of all training clips, if they were stored; 0: never teaches
    store_views: int  # number of views of a clip of which its students use its logits


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A whole run, or its first steps. Bytes of checkpoints are those of their tensors."""

    steps: int
    epochs: float
    clips: Clips
    models: dict[str, ModelCost]
    cache_bytes: int  # all clips decoded, if each is data.clip_seconds long
    clips_read: int  # from that cache
    bytes_read: int
    checkpoints: int
    checkpoint_bytes: int  # of the newest
    bytes_written: int  # by all checkpoints and the delivered taggers
    bytes_kept: int  # peak: the last ones, the best of each trained model, one being written, and the taggers

    @property
    def flops(self) -> int:
        return sum(model.learn_flops + model.teach_flops + model.score_flops for model in self.models.values())

    @property
    def clip_bytes(self) -> int:
        """Of one decoded clip in the cache."""
        return self.bytes_read // self.clips_read

    def hours(self, *, tflops: float, devices: int) -> float:
        """Hours on `devices` devices that each reach `tflops` x 1e12 FLOPs per second on these models."""
        return self.flops / (tflops * 1e12 * devices) / 3600


def count_clips(recipe: Recipe, files: Opener, *, clips: int | None, tags: int | None) -> Clips:
    """Numbers of clips and tags as given, or from the recipe's metadata; no audio is read.

    Raises ValueError where only one of the two is given, or neither and the metadata cannot be read.
    """
    if (clips is None) != (tags is None):
        raise ValueError("--clips N --tags C: give both or neither; without them the recipe's metadata is read")
    if clips is not None and tags is not None:
        if min(clips, tags) < 1:
            raise ValueError(f"--clips {clips} --tags {tags}: each must be 1 or more")
        return Clips(train=clips, tags=tags)
    try:
        dataset = read_dataset(recipe.data, files, model_tags=check_stores(recipe, files), tags_of="store")
        require_two_tags(dataset)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; or give the numbers: --clips N (to train on) --tags C") from None
    splits = split(dataset, recipe.data)
    return Clips(train=len(splits.train), val=len(splits.val), test=len(splits.test), tags=len(dataset.tags))


def model_sizes(recipe: Recipe, *, tags: int) -> dict[str, Size]:
    """The size of each model of the recipe with `tags` outputs."""
    return {
        name: model_size(model, num_classes=tags, clip_seconds=recipe.data.clip_seconds, clip_rate=recipe.rate)
        for name, model in recipe.models.items()
    }


def plan_cost(
    recipe: Recipe, phases: tuple[Phase, ...], clips: Clips, sizes: dict[str, Size], *, until: int | None = None
) -> Cost:
    """The cost of the whole run, or of its first `until` steps, including a checkpoint after the last one.

    Raises ValueError where the training clips do not fill one batch.
    """
    batch, end = recipe.train.batch_size, phases[-1].end
    steps, whole = until or end, until is None
    require_full_batch(clips.train, recipe.train)
    models = {
        name: _model_cost(recipe, name, phases, clips, sizes[name], until=steps, whole=whole) for name in recipe.models
    }
    saves = list(planned_checkpoints(recipe, phases, sizes, until=steps))
    written = sum(size * number for size, number in saves)
    at_once = recipe.train.keep_last + sum(model.own_steps > 0 for model in models.values()) + 1
    delivered = _delivered_bytes(recipe, clips, sizes) if whole else 0
    clip_bytes = HEADER_BYTES + SAMPLE_BYTES * round(recipe.data.clip_seconds * recipe.rate)
    read = _clips_read(recipe, phases, clips, until=steps, whole=whole)
    return Cost(
        steps=steps,
        epochs=steps / (clips.train // batch),
        clips=clips,
        models=models,
        cache_bytes=clip_bytes * (clips.train + clips.val + clips.test),
        clips_read=read,
        bytes_read=read * clip_bytes,
        checkpoints=sum(number for _, number in saves),
        checkpoint_bytes=saves[-1][0],
        bytes_written=written + delivered,
        bytes_kept=sum_of_largest(saves, at_once) + delivered,
    )


def step_flops(recipe: Recipe, phase: Phase, sizes: dict[str, Size]) -> int:
    """FLOPs of the networks in one step of this phase."""
    return sum(learn_and_teach_flops(recipe, phase, sizes))


def learn_and_teach_flops(recipe: Recipe, phase: Phase, sizes: dict[str, Size]) -> tuple[int, int]:
    """FLOPs of the students and of the live teachers in one step of this phase, over the whole batch."""
    forwards = {name: 2 * sizes[name].macs * recipe.train.batch_size for name in phase.needs}
    learn = sum(3 * forwards[name] for name in phase.trains)
    return learn, sum(flops * _teacher_forwards(phase, name) for name, flops in forwards.items())


def _delivered_bytes(recipe: Recipe, clips: Clips, sizes: dict[str, Size]) -> int:
    """Bytes of the delivered taggers, which come with their test logits and labels, in fp32."""
    predictions = 2 * 4 * clips.test * clips.tags if recipe.train.score_test else 0
    return sum(size.weight_bytes + predictions for size in sizes.values())


def _model_cost(
    recipe: Recipe, name: str, phases: tuple[Phase, ...], clips: Clips, size: Size, *, until: int, whole: bool
) -> ModelCost:
    batch, reached = recipe.train.batch_size, steps_by_phase(phases, until)
    own = sum(steps for phase, steps in reached if name in phase.trains)
    taught = [
        (phase, steps)
        for phase, steps in reached
        if any(edge.teacher == name and edge.weight > 0 for edge in phase.edges)
    ]
    asked = [(phase, steps) for phase, steps in taught if any(_says_tags(name, edge) for edge in phase.edges)]
    teacher_forwards = sum(steps * _teacher_forwards(phase, name) for phase, steps in reached)
    scored = _validations(recipe, name, phases, until) * clips.val + _clips_scored_at_the_end(recipe, clips) * whole
    return ModelCost(
        params=size.params,
        macs=size.macs,
        own_steps=own,
        taught_steps=sum(steps for _, steps in taught),
        clips_seen=own * batch,
        epochs=own / (clips.train // batch),
        learn_flops=6 * size.macs * batch * own,
        teach_flops=2 * size.macs * batch * teacher_forwards,
        score_flops=2 * size.macs * scored,
        weight_bytes=size.weight_bytes,
        optimizer_bytes=size.optimizer_bytes if own else 0,
        store_view_bytes=clips.train * clips.tags * LOGIT_BYTES if asked else 0,
        store_views=_views_taught(name, asked, steps_per_epoch=clips.train // batch),
    )


def _says_tags(name: str, edge: Edge) -> bool:
    """Whether a store of the model's logits could take its place along the edge."""
    return edge.teacher == name and edge.weight > 0 and edge.carries == "logits"


def _teacher_forwards(phase: Phase, name: str) -> int:
    """Forwards that a model runs in a step of this phase only to teach.

    A model that trains and teaches with its live weights runs one forward for both. Every other combination of view and
    source (snapshot, average) takes one forward, shared by all students that use it (`ModelPool._teacher_sources`).
    """
    outputs = {(edge.view, edge.source) for edge in phase.edges if edge.teacher == name}
    return sum(source != "live" or name not in phase.trains for _, source in outputs)


def _views_taught(name: str, taught: list[tuple[Phase, int]], *, steps_per_epoch: int) -> int:
    """Number of views of a clip of which students use this teacher's logits: one per epoch, and the clean one."""
    num_epochs = end = 0  # epochs before `end` are counted
    views = {edge.view for phase, _ in taught for edge in phase.edges if edge.teacher == name}
    for phase, steps in taught:
        if any(edge.teacher == name and edge.view == "same" for edge in phase.edges):
            first, end_of_phase = phase.start // steps_per_epoch, -(-(phase.start + steps) // steps_per_epoch)
            num_epochs += end_of_phase - max(first, end)
            end = end_of_phase
    return num_epochs + ("clean" in views)


def _clips_read(recipe: Recipe, phases: tuple[Phase, ...], clips: Clips, *, until: int, whole: bool) -> int:
    """Number of clips read from the cache: each clip of a batch once, whatever its views, and for scoring."""
    read = recipe.train.batch_size * min(until, phases[-1].end)
    scored = sum(_validations(recipe, name, phases, until) for name in recipe.models) * clips.val
    played = recipe.train.score_test * min(recipe.train.report_clips, clips.test)  # the report plays them
    return read + scored + (len(recipe.models) * _clips_scored_at_the_end(recipe, clips) + played) * whole


def _clips_scored_at_the_end(recipe: Recipe, clips: Clips) -> int:
    return clips.val + clips.test * recipe.train.score_test


def _validations(recipe: Recipe, name: str, phases: tuple[Phase, ...], until: int) -> int:
    """Number of validations of a model: every `eval_every` steps while it trains, and at the ends of its phases."""
    return sum(
        validations_in(phase, phase.start + steps, recipe.train.eval_every)
        for phase, steps in steps_by_phase(phases, until)
        if name in phase.trains
    )
