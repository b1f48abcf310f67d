"""Data of which no label is known: a store's teachers say what is learned, nothing is scored, and what needs scores is
refused.
"""

from workloads.config.recipe import Recipe


def require_no_scores(recipe: Recipe, *, search: bool = False) -> None:
    """Raise ValueError for the first setting, or for a `search`, that needs scores, which such data cannot give."""
    reason = "no clip of the data has a label, so nothing is scored"
    if search:
        raise ValueError(f"search: compares validation scores, and {reason}; label some clips, or use `antiphon run`")
    if recipe.compare:
        raise ValueError(f"compare = true: compares test scores, and {reason}; label some clips, or --no-compare")
    if recipe.data.unlabelled == "leave_out":
        raise ValueError("data.unlabelled = 'leave_out': no clip of the data has a label, so none is left; set 'hear'")
    if recipe.schedule.kind == "gated":
        raise ValueError(
            f"schedule.kind = 'gated': its weights follow validation scores, and {reason}; label some clips, or set "
            "another kind"
        )
    for name, model in recipe.models.items():
        if model.average.kind == "best":
            raise ValueError(
                f"models.{name}.average.kind = 'best': is chosen by validation scores, and {reason}; label some clips, "
                "or set 'ema' or 'none'"
            )
