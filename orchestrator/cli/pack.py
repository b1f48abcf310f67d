"""`antiphon data pack` and `antiphon data verify`: a data set in archives. Parses and prints."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.counted_progress import counted_progress
from orchestrator.cli.options import (
    FAILED,
    PREEMPTED,
    AddressOption,
    JsonOption,
    RecipeArg,
    SetOption,
    WaitOption,
    cluster_address,
    command_line,
    only_json,
)
from orchestrator.cli.printing import print_note, print_out, print_warning
from workloads.runtime.text import name_some

if TYPE_CHECKING:
    from workloads.data.pack import Manifest

SHOWN_CLIPS = 5  # by name
MANIFEST_KEYS = ("form", "rate", "clips", "fingerprint", "quarantined", "archives")


def data_pack(
    recipe: RecipeArg,
    out: Annotated[str, typer.Option(help="Where to: a folder or s3://bucket/prefix.")],
    form: Annotated[
        str, typer.Option("--as", metavar="original|flac|int16", help="The files as they are, or decoded, in 16 bits.")
    ] = "original",
    rate: Annotated[
        int | None, typer.Option(help="Hz at which to decode, for flac and int16; default: what the models need.")
    ] = None,
    archive_mb: Annotated[float, typer.Option(help="About how large an archive is to be, in MB.")] = 128,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers that read and decode; default: this process, without Ray.")
    ] = None,
    address: AddressOption = "",
    wait: WaitOption = 0.0,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a recipe's data set into archives with an index, for data.format = packed; again: finish what is missing."""
    from orchestrator.artifacts.pack import PackRequest, pack
    from orchestrator.recipes.loader import load_recipe

    if form not in ("original", "flac", "int16"):
        raise ValueError(f"--as {form}: must be original, flac or int16")
    if rate is not None and form == "original":
        raise ValueError(f"--rate {rate}: files that stay as they are keep their rate; leave it out, or use --as flac")
    with only_json(as_json) as emit:
        loaded = load_recipe(recipe, settings)
        at = cluster_address(address, local=workers is None)
        request = PackRequest(loaded, out, form, rate or loaded.rate, archive_mb, workers, at, wait)  # type: ignore
        try:
            with counted_progress("archives packed") as progress:
                manifest = pack(request, progress)
        except KeyboardInterrupt:
            emit({"status": "preempted", "uri": out})
            print_note(f"stopped: the archives that are written stay; the same command goes on: {command_line()}")
            raise typer.Exit(PREEMPTED) from None
        size = sum(archive["bytes"] for archive in manifest["archives"])
        emit({"uri": out, "bytes": size, **{key: manifest[key] for key in MANIFEST_KEYS}})  # type: ignore[literal-required]
        if not as_json:
            _print_pack(manifest, size, out)
    for warning in manifest["warnings"]:
        print_warning(warning)


def _print_pack(manifest: "Manifest", size: int, out: str) -> None:
    print_out(f"{manifest['clips']} clips in {len(manifest['archives'])} archives, {size / 1e6:,.1f} MB: {out}")
    print_out(f"fingerprint {manifest['fingerprint']}")
    print_out(f"quarantined {len(manifest['quarantined'])}")
    for broken in manifest["quarantined"]:
        print_out(f"  {broken['clip_id']}  {broken['path']}: {broken['reason']}")


def data_verify(
    uri: Annotated[str, typer.Argument(help="A packed data set: a folder or s3://bucket/prefix.")],
    as_json: JsonOption = False,
) -> None:
    """Read a packed data set whole and compare it with its checksums; exit code 1 where it is damaged."""
    from dataclasses import asdict

    from orchestrator.artifacts.verify_pack import verify_pack

    with only_json(as_json) as emit:
        with counted_progress("archives read") as progress:
            pack, damaged = verify_pack(uri, progress)
        clips, archives = len(pack.clip_ids), len(pack.manifest["archives"])
        result: dict[str, Any] = {"uri": uri, "clips": clips, "archives": archives}
        emit(result | {"damaged": [asdict(archive) for archive in damaged]})
        if not as_json:
            for archive in damaged:
                names = name_some(archive.clip_ids, SHOWN_CLIPS) or "none"
                print_out(f"damaged: {archive.archive}: {archive.reason}; clips: {names}")
            print_out(f"{archives - len(damaged)} of {archives} archives with {clips} clips are as they were packed")
    if damaged:
        raise typer.Exit(FAILED)
