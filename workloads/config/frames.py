"""Which recipes may learn and teach when tags sound: the rules of logits in time. Imports nothing heavy."""

from collections.abc import Mapping, Sequence

from workloads.config.architectures import Arch, FrameMN, gives_frames
from workloads.config.edge import Edge


def check_frames(
    archs: Mapping[str, Arch],
    learners: Sequence[str],
    edges: Sequence[Edge],
    *,
    labels: str,
    compiled: bool,
    rolled_and_mixed: bool,
) -> None:
    """Raise ValueError where models that learn from labels in time, or that edges with frames join, cannot.

    `archs` are those of the recipe's models, `learners` the models with `frame_labels`; `rolled_and_mixed`: clips are
    mixed after each was rolled by itself.
    """
    settings = {name: f"models.{name}.frame_labels = true" for name in learners}
    asked = list(settings.items())
    for edge in edges:
        if edge.carries == "frames":
            place = f"edges {edge.key}: carries = 'frames'"
            asked += [(name, place) for name in ([edge.student] if edge.store else [edge.teacher, edge.student])]
            if edge.view == "clean" and not edge.store and rolled_and_mixed:
                raise ValueError(
                    f"edges {edge.key}: view = 'clean': a clip without augmentation cannot be followed into a mixture "
                    "of rolled ones; use view = 'same', or set augment.roll or augment.mixup to 0"
                )
    for name, place in asked:
        if not gives_frames(archs[name]):
            raise ValueError(
                f"{place}: {name} ({archs[name].family}) has no logits in time; use frame_mn, mn with "
                f"head = 'fully_convolutional', or set models.{name}.arch.frame_pool of a vit, ast, passt, eat or ced"
            )
    if asked and labels == "single":
        raise ValueError(f"{asked[0][1]}: needs data.labels = 'multi', a probability for each tag in time")
    if learners and compiled:
        raise ValueError(f"train.compile = true: not with {settings[learners[0]]} so far; set it to false")
    for name, arch in archs.items():
        if isinstance(arch, FrameMN) and arch.frame_pool == "own_head" and name not in learners:
            raise ValueError(
                f"models.{name}.arch.frame_pool = 'own_head': the head of its steps learns from labels in time only; "
                f"set models.{name}.frame_labels = true, or pool its steps"
            )
