"""How the workers of a run divide its batches. Imports nothing heavy."""

from workloads.config.recipe import Recipe


def num_data_ranks(recipe: Recipe, workers: int) -> int:
    """Into how many parts so many workers divide the shards of a batch; of a split run each part is on several.

    Raises ValueError where the workers do not divide among the groups of models, or the shards among the parts.
    """
    groups = len(recipe.group_models()) if recipe.placement == "split" else 1
    parts, left = divmod(workers, groups)
    if left:
        raise ValueError(
            f"--workers {workers}: placement = 'split' has {groups} groups of models with as many workers each; give a "
            f"multiple of {groups}, or --set placement=colocated"
        )
    if recipe.train.shards % parts:
        raise ValueError(
            f"--workers {workers}: train.shards = {recipe.train.shards} must divide among "
            f"{'them' if groups == 1 else f'the {parts} workers of a group'}; --set train.shards={parts} (the global "
            "batch is shards x shard_size clips)"
        )
    return parts
