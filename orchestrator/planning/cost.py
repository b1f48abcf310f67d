"""What a run would cost, before anybody pays for it: steps, clips, arithmetic and bytes. Trains nothing.

Everything follows from the recipe's phases, the sizes of its models and the number of its clips; `measure.py` holds it
against a short run. A FLOP is one multiplication or addition, two to a multiply-add (MAC).
"""

from dataclasses import dataclass

from workloads.config.recipe import Recipe
from workloads.data.clips import split
from workloads.data.manifest import read_dataset
from workloads.distill.schedule import Phase
from workloads.models.size import Size, model_size
from workloads.runtime.opener import Opener

HEADER_BYTES = 128  # of a .npy file with one axis
SAMPLE_BYTES = 2  # int16, as `workloads/cache.py` stores clips
LOGIT_BYTES = 2  # fp16, as a store of logits would (reference/cmkd.md 3.2)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """How many clips there are to learn from and to be scored on, and how many tags they have."""

    train: int
    tags: int
    val: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """One model's part. FLOPs are those of networks: front ends, losses and optimizers are not in them."""

    params: int
    macs: int  # of one clip's forward
    own_steps: int
    taught_steps: int
    clips_seen: int  # while it learned
    epochs: float
    learn_flops: int  # forward and backward: three forwards
    teach_flops: int
    score_flops: int
    weight_bytes: int
    optimizer_bytes: int
    store_view_bytes: int  # of its logits about one view of every training clip, were they stored; 0: it never teaches
    store_views: int  # in how many views of a clip its students hear it


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A whole run, or its first steps. Bytes of checkpoints are those of their tensors."""

    steps: int
    epochs: float
    clips: Clips
    models: dict[str, ModelCost]
    cache_bytes: int  # all clips decoded, were each as long as data.clip_seconds
    clips_read: int  # from that cache
    bytes_read: int
    checkpoints: int
    checkpoint_bytes: int  # of the newest
    bytes_written: int  # by all checkpoints and the delivered taggers
    bytes_kept: int  # at most at any time: the last, each learner's best, one being written, and the taggers

    @property
    def flops(self) -> int:
        return sum(model.learn_flops + model.teach_flops + model.score_flops for model in self.models.values())

    def hours(self, *, tflops: float, devices: int) -> float:
        """On so many devices that each reach `tflops` million million FLOPs a second on these models."""
        return self.flops / (tflops * 1e12 * devices) / 3600


def count_clips(recipe: Recipe, files: Opener, *, clips: int | None, tags: int | None) -> Clips:
    """As given, or from the recipe's metadata; no audio is read.

    Raises ValueError where the metadata cannot be read and nothing was given, or only one of the two.
    """
    if (clips is None) != (tags is None):
        raise ValueError("--clips N --tags C: the two go together; without them the recipe's metadata is read")
    if clips is not None and tags is not None:
        if min(clips, tags) < 1:
            raise ValueError(f"--clips {clips} --tags {tags}: each must be 1 or more")
        return Clips(train=clips, tags=tags)
    try:
        dataset = read_dataset(recipe.data, files)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; or say how much there is: --clips N (to train on) --tags C") from None
    cut = split(dataset, recipe.data)
    return Clips(train=len(cut.train), val=len(cut.val), test=len(cut.test), tags=len(dataset.tags))


def model_sizes(recipe: Recipe, *, tags: int) -> dict[str, Size]:
    """How large each model of the recipe is when it tells so many tags apart."""
    return {
        name: model_size(model, num_classes=tags, clip_seconds=recipe.data.clip_seconds, clip_rate=recipe.rate)
        for name, model in recipe.models.items()
    }


def plan_cost(
    recipe: Recipe, phases: tuple[Phase, ...], clips: Clips, sizes: dict[str, Size], *, until: int | None = None
) -> Cost:
    """The cost of the run, or with `until` of its first steps, at whose end a checkpoint is written.

    Raises ValueError where the training clips do not fill one batch.
    """
    batch, end = recipe.train.batch_size, phases[-1].end
    steps, whole = until or end, until is None
    if clips.train < batch:
        raise ValueError(
            f"train.shard_size x train.shards = {batch}: a batch needs as many clips, and only {clips.train} are in "
            "the training split; lower one of the two"
        )
    models = {
        name: _model_cost(recipe, name, phases, clips, sizes[name], until=steps, whole=whole) for name in recipe.models
    }
    saves = [checkpoint_bytes(recipe, phases, sizes, step) for step in _saves(recipe, phases, steps)]
    delivered = sum(size.weight_bytes for size in sizes.values()) if whole else 0
    learners = sum(model.own_steps > 0 for model in models.values())
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
        checkpoints=len(saves),
        checkpoint_bytes=saves[-1],
        bytes_written=sum(saves) + delivered,
        bytes_kept=sum(sorted(saves)[-(recipe.train.keep_last + learners + 1) :]) + delivered,
    )


def step_flops(recipe: Recipe, phase: Phase, sizes: dict[str, Size]) -> int:
    """What the networks compute in one step of this phase."""
    clips = recipe.train.batch_size
    return sum(
        2 * sizes[name].macs * clips * (3 * (name in phase.trains) + _hearings(phase, name)) for name in phase.needs
    )


def checkpoint_bytes(recipe: Recipe, phases: tuple[Phase, ...], sizes: dict[str, Size], step: int) -> int:
    """Bytes of the tensors in a checkpoint written after `step` steps.

    It holds every model that a phase has needed so far: its weights, its optimizer's once it has learned, its average,
    and the snapshots that teach in the present phase.
    """
    begun = _stretches(phases, step)
    total = 0
    for name in dict.fromkeys(name for phase, _ in begun for name in phase.needs):
        average = recipe.models[name].average
        averages = {"none": 0, "ema": 1, "best": min(average.best, _validations(recipe, name, phases, step))}
        learned = any(name in phase.trains for phase, _ in begun)
        total += sizes[name].weight_bytes * (1 + averages[average.kind]) + sizes[name].optimizer_bytes * learned
    snapshots = {edge.teacher for edge in begun[-1][0].edges if edge.source == "snapshot"}
    return total + sum(sizes[name].weight_bytes for name in snapshots)


def _model_cost(
    recipe: Recipe, name: str, phases: tuple[Phase, ...], clips: Clips, size: Size, *, until: int, whole: bool
) -> ModelCost:
    batch, stretches = recipe.train.batch_size, _stretches(phases, until)
    own = sum(steps for phase, steps in stretches if name in phase.trains)
    taught = [
        (phase, steps)
        for phase, steps in stretches
        if any(edge.teacher == name and edge.weight > 0 for edge in phase.edges)
    ]
    scored = _validations(recipe, name, phases, until) * clips.val + _scored_at_the_end(recipe, clips) * whole
    return ModelCost(
        params=size.params,
        macs=size.macs,
        own_steps=own,
        taught_steps=sum(steps for _, steps in taught),
        clips_seen=own * batch,
        epochs=own / (clips.train // batch),
        learn_flops=6 * size.macs * batch * own,
        teach_flops=2 * size.macs * batch * sum(steps * _hearings(phase, name) for phase, steps in stretches),
        score_flops=2 * size.macs * scored,
        weight_bytes=size.weight_bytes,
        optimizer_bytes=size.optimizer_bytes if own else 0,
        store_view_bytes=clips.train * clips.tags * LOGIT_BYTES if taught else 0,
        store_views=_views_taught(name, taught, steps_per_epoch=clips.train // batch),
    )


def _hearings(phase: Phase, name: str) -> int:
    """How many forwards a model runs in a step of this phase only to teach.

    Who learns and teaches at once runs one forward for both; every other way in which a teacher is heard (its view, its
    snapshot or average) takes one, shared by all students that hear it so (`ModelPool._sources`).
    """
    heard = {(edge.view, edge.source) for edge in phase.edges if edge.teacher == name}
    return sum(source != "live" or name not in phase.trains for _, source in heard)


def _views_taught(name: str, taught: list[tuple[Phase, int]], *, steps_per_epoch: int) -> int:
    """Views of a clip in which students hear this teacher: one an epoch, and the clean one."""
    epochs: set[int] = set()
    views = {edge.view for phase, _ in taught for edge in phase.edges if edge.teacher == name}
    for phase, steps in taught:
        if any(edge.teacher == name and edge.view == "same" for edge in phase.edges):
            epochs.update(range(phase.start // steps_per_epoch, -(-(phase.start + steps) // steps_per_epoch)))
    return len(epochs) + ("clean" in views)


def _clips_read(recipe: Recipe, phases: tuple[Phase, ...], clips: Clips, *, until: int, whole: bool) -> int:
    """How many clips are read from the cache: batches, partners from other shards, clean views, scoring."""
    outside = recipe.augment.mixup * (1 - 1 / recipe.train.shards)  # partners within a shard are there already
    batch = recipe.train.batch_size * (1 + outside)
    again = recipe.augment.has_clean_view
    read = sum(
        steps * batch * (1 + (again and any(edge.view == "clean" for edge in phase.edges)))
        for phase, steps in _stretches(phases, until)
    )
    scored = sum(_validations(recipe, name, phases, until) for name in recipe.models) * clips.val
    return round(read) + scored + len(recipe.models) * _scored_at_the_end(recipe, clips) * whole


def _scored_at_the_end(recipe: Recipe, clips: Clips) -> int:
    return clips.val + clips.test * recipe.train.score_test


def _stretches(phases: tuple[Phase, ...], until: int) -> list[tuple[Phase, int]]:
    """The phases that the first `until` steps reach into, with the steps they take there."""
    return [(phase, min(phase.end, until) - phase.start) for phase in phases if phase.start < until]


def _validations(recipe: Recipe, name: str, phases: tuple[Phase, ...], until: int) -> int:
    """How often a model is validated: every so many steps of the loop while it learns, and at its phases' ends."""
    every, found = recipe.train.eval_every, 0
    for phase, steps in _stretches(phases, until):
        if name in phase.trains:
            last = phase.start + steps
            found += last // every - phase.start // every + (last == phase.end and last % every > 0)
    return found


def _saves(recipe: Recipe, phases: tuple[Phase, ...], until: int) -> list[int]:
    """After which steps a checkpoint is written: every so many, at every phase's end, and at the end."""
    regular = range(recipe.train.checkpoint_every, until + 1, recipe.train.checkpoint_every)
    return sorted({*regular, *(phase.end for phase in phases if phase.end <= until), until})
