"""How `antiphon evaluate` prints scores: of all clips, of each tag, and the clips that the model heard most wrongly."""

from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.cli.printing import cell, print_out
from workloads.runtime.text import name_some

ALL_TAGS = 30  # up to this number all tags are listed
FEW = 10  # of more tags, those listed at either end
NOT_SCORED = "-"
Scores = dict[str, Any]


def print_scores(result: Scores) -> None:
    """Print what `evaluate_checkpoint` has returned; the tables fit into 80 columns."""
    print_out(f"{result['model']} on the {result['part']} part: {result['clips']:,} clips, {result['tags']} tags")
    for name, value in result["scores"].items():
        if name != "tags_skipped":
            print_out(f"{name:10} {value:.4f}{_beside(name, result)}")
    if absent := result["tags_not_in_data"]:
        left_out = "no score counts them" if result["labels"] == "multi" else "a clip heard as one of them is wrong"
        print_out(f"not in the data: {name_some(absent)}; {left_out}")
    Console().print(_tag_table(result))
    _print_left_out(result["per_tag"])
    Console().print(_clip_table(result["most_wrong"]))
    if result["out"]:
        print_out(f"predictions of all clips: {result['out']}")


def _beside(name: str, result: Scores) -> str:
    """What a score is compared with, and how many tags it is the mean of."""
    chance = result["chance"].get(name)
    without = "" if chance is None else f"   without a model {chance:.4f}"
    mean = f"   mean of {result['tags_scored']} of {result['tags']} tags" if name in ("mAP", "auc") else ""
    return without + mean


def _tag_table(result: Scores) -> Table:
    single = result["labels"] == "single"
    columns = {"recall": "recall"} if single else {}
    columns |= {"average_precision": "average precision", "chance": "at random"}
    table = Table(title="tags, the worst first")
    table.add_column("tag", overflow="fold")
    for name in ("clips", *columns.values()):
        table.add_column(name, justify="right")
    rows = _listed(result["per_tag"], "recall" if single else "average_precision")
    has_reasons = any(scores["reason"] for _, scores in rows)
    if has_reasons:
        table.add_column("not scored")
    for tag, scores in rows:
        numbers = [_number(scores[key]) for key in columns]
        table.add_row(cell(tag), f"{scores['support']:,}", *numbers, *([scores["reason"]] if has_reasons else []))
    return table


def _listed(per_tag: dict[str, Scores], key: str) -> list[tuple[str, Scores]]:
    """The tags by score, the worst first, then those without one; of many tags the scored ones at either end."""
    rows = sorted(per_tag.items(), key=lambda row: (row[1][key] is None, row[1][key] or 0.0))
    if len(rows) <= ALL_TAGS:
        return rows
    scored = [row for row in rows if row[1][key] is not None]
    return scored if len(scored) <= 2 * FEW else scored[:FEW] + scored[-FEW:]


def _print_left_out(per_tag: dict[str, Scores]) -> None:
    """With many tags: which of them have no score and why, and where all of them are listed."""
    if len(per_tag) <= ALL_TAGS:
        return
    print_out(f"the {FEW} worst and best; all in --json, the probabilities of every clip in --out FILE")
    reasons = [scores["reason"] for scores in per_tag.values() if scores["reason"]]
    for reason in dict.fromkeys(reasons):
        tags = [tag for tag, scores in per_tag.items() if scores["reason"] == reason]
        print_out(f"not scored, {reason}: {name_some(tags, FEW)}")


def _clip_table(clips: list[Scores]) -> Table:
    table = Table(title=f"the {len(clips)} clips heard most wrongly, with the probabilities that the model gave")
    table.add_column("loss", justify="right")
    for name in ("clip", "true tags", "most likely tags"):
        table.add_column(name, overflow="fold")
    for clip in clips:
        table.add_row(f"{clip['loss']:.3f}", cell(clip["clip_id"]), _tags(clip["tags"]), _tags(clip["likeliest"]))
    return table


def _tags(probabilities: dict[str, float]) -> Any:
    return cell(", ".join(f"{tag} {p:.2f}" for tag, p in probabilities.items()) or "none")


def _number(value: float | None) -> str:
    return NOT_SCORED if value is None else f"{value:.4f}"
