"""`antiphon plan --cluster`: reads the spec, prints hours, bottleneck and price; `planning/scale.py` computes them."""

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.printing import cell
from workloads.config.data import COMPUTED

if TYPE_CHECKING:
    from orchestrator.planning.cost import Cost
    from orchestrator.planning.scale import Cluster, Row, ScaleModel
    from orchestrator.planning.stores import StoreCost
    from workloads.config.recipe import Recipe
    from workloads.distill.schedule import Phase
    from workloads.models.size import Size
    from workloads.runtime.opener import Opener

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
MOST_WORKERS = 10_000
SHOWN_TERMS = 2  # of a row in the terminal, the largest


@dataclass(frozen=True)
class Target:
    """What the options say about the cluster, checked."""

    cluster: "Cluster"
    workers: tuple[int, ...]
    clip_kb: float | None


@dataclass(frozen=True)
class Scale:
    """The predictions for a cluster, and the model with all its inputs."""

    model: "ScaleModel"
    rows: "tuple[Row, ...]"


def target(
    recipe: "Recipe", spec_name: str, *, group: str, workers: str, clip_kb: float | None, tflops: float | None
) -> Target | None:
    """The cluster to plan for; None without `--cluster`. Raises ValueError for the user's mistakes."""
    from cluster.spec_file import load_spec
    from orchestrator.planning.nodes import group_for
    from orchestrator.planning.scale import Cluster

    given = {"--group": group, "--workers": workers, "--clip-kb": clip_kb}
    if not spec_name:
        for option, value in given.items():
            if value not in ("", None):
                raise ValueError(f"{option} {value}: is about a cluster; give its spec too: --cluster SPEC")
        return None
    if clip_kb is not None and not 0 < clip_kb < math.inf:
        raise ValueError(f"--clip-kb {clip_kb:g}: must be above 0")
    spec = load_spec(spec_name)
    name, per_node = group_for(spec, recipe, group)
    nodes = spec.workers[name]
    rate = nodes.speed.tflops if tflops is None else tflops
    if tflops is None and not rate:
        raise ValueError(
            f"workers.{name}.speed.tflops: is not in the spec, and hours depend on it; add it, or give --tflops "
            "(`antiphon plan RECIPE --measure 20` on such a node measures it)"
        )
    shared = spec.cache is not None and bool(spec.cache.claim)
    return Target(
        Cluster(
            group=name,
            nodes=nodes,
            storage=spec.storage_speed,
            tflops=rate,
            per_node=per_node,
            head_price=spec.head.price_per_hour,
            shared_cache=shared,
        ),
        _numbers(workers, recipe.train.shards),
        clip_kb,
    )


def _numbers(text: str, shards: int) -> tuple[int, ...]:
    """The numbers of workers that are given; or of WORKERS, or nearest below them, those that can share the shards."""
    from orchestrator.planning.scale import largest_divisor

    if not text:
        return tuple(sorted({largest_divisor(shards, number) for number in WORKERS}))
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,5}", word) and 1 <= int(word) <= MOST_WORKERS for word in words):
        raise ValueError(f"--workers {text!r}: must be numbers from 1 to {MOST_WORKERS}, as 1,2,4,8")
    return tuple(sorted({int(word) for word in words}))


def predict(
    target: Target,
    recipe: "Recipe",
    phases: "tuple[Phase, ...]",
    sizes: "dict[str, Size]",
    cost: "Cost",
    files: "Opener",
    *,
    known: bool,
    stores: "tuple[StoreCost, ...]" = (),
) -> Scale:
    """The predictions for the target; `known`: the recipe's metadata were read, not only numbers of clips given."""
    from orchestrator.planning.fetching import source_of
    from orchestrator.planning.scale import ScaleModel

    source = source_of(recipe.data, cost, files, known=known, clip_kb=target.clip_kb)
    model = ScaleModel(recipe, phases, sizes, cost, target.cluster, source, stores)
    return Scale(model, model.rows(target.workers))


def print_scale(recipe: "Recipe", scale: Scale) -> None:
    """Print one line for each number of workers, and what the numbers rest on."""
    cluster, shards = scale.model.cluster, recipe.train.shards
    Console(width=140).print(_table(scale))
    typer.echo(f"workers      a node of {cluster.group} holds {cluster.per_node}, each of {cluster.tflops:g} TFLOP/s")
    typer.echo(f"             only divisors of train.shards = {shards} can share a batch evenly")
    if shards == 1:
        typer.echo("             for N workers: --set train.shards=N, and fewer clips in train.shard_size")
    typer.echo(f"clips        {_describe_source(scale)}")
    if {row.bottleneck for row in scale.rows} & {"requests", "decoding"} and not scale.model.source.archives:
        typer.echo("             `antiphon data pack` makes archives of them, which take fewer requests")
    price, head = cluster.nodes.price_per_hour, cluster.head_price
    known = f"{price:g} for a node and hour, {head:g} for the head; none for requests and traffic"
    typer.echo(f"price        {known if price else f'workers.{cluster.group}.price_per_hour is not in the spec'}")
    typer.echo("not counted  failures, nodes that are taken away, time in a queue")


def _describe_source(scale: Scale) -> str:
    """Where the clips come from, and how often."""
    source = scale.model.source
    if scale.model.recipe.data.format in COMPUTED:
        return f"{source.clips:,}, generated on every node"
    where = "a store" if source.remote else "a disk of each node"
    if source.archives:
        return f"{source.clips:,} in {source.archives:,} archives in {where}"
    once = "once for all nodes" if scale.model.cluster.shared_cache else "on every node, before the first step"
    return f"{source.clips:,} files in {where}, fetched and decoded {once}"


def _table(scale: Scale) -> Table:
    table = Table(title=cell(f"{scale.model.recipe.name} on the spec's group {scale.model.cluster.group}"))
    for column in ("workers", "nodes", "hours", "speed-up", "s / step", "bottleneck", "price", ""):
        table.add_column(column, justify="left" if column in ("bottleneck", "") else "right")
    for row in scale.rows:
        if row.hours is None or row.speedup is None or row.seconds_per_step is None:
            table.add_row(f"{row.workers:,}", f"{row.nodes:,}", "-", "-", "-", "-", "-", cell(row.note))
            continue
        table.add_row(
            f"{row.workers:,}",
            f"{row.nodes:,}",
            f"{row.hours:,.3g}",
            f"{row.speedup:.2f}",
            f"{row.seconds_per_step:.3g}",
            _bottleneck(row),
            "-" if row.price is None else f"{row.price:,.2f}",
            cell(row.note),
        )
    return table


def _bottleneck(row: "Row") -> str:
    """compute 83 %, then exchange 9 %."""
    total = sum(row.seconds.values())
    largest = sorted(row.seconds.items(), key=lambda term: -term[1])[:SHOWN_TERMS]
    return ", then ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in largest if seconds)


def as_json(scale: Scale) -> dict[str, Any]:
    """All rows with all terms, and the inputs that are not the recipe's."""
    cluster = scale.model.cluster
    return {
        "group": cluster.group,
        "workers_per_node": cluster.per_node,
        "tflops": cluster.tflops,
        "price_per_hour": {"node": cluster.nodes.price_per_hour, "head": cluster.head_price},
        "speed": asdict(cluster.nodes.speed),
        "storage_speed": asdict(cluster.storage),
        "shared_cache": cluster.shared_cache,
        "source": asdict(scale.model.source),
        "rows": [asdict(row) for row in scale.rows],
    }
