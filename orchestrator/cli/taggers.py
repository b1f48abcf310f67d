"""`antiphon evaluate` and `antiphon tag`: scores and predictions of a published tagger. Parses and prints."""

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.cli.options import FAILED, CheckpointArg, JsonOption, SetOption, only_json
from orchestrator.cli.printing import print_note, print_out
from orchestrator.cli.score_tables import print_scores
from orchestrator.cli.tag_stream import (
    CarryOption,
    ChannelsOption,
    HopOption,
    MergeGapOption,
    MinDurationOption,
    OffOption,
    PcmOption,
    RateOption,
    StreamOption,
    tag_stream,
)

TOP, BEGINS = 5, 0.5  # defaults: tags of a file, the probability at which an event begins


def evaluate(
    checkpoint: CheckpointArg,
    data: Annotated[str, typer.Option(help="The recipe whose data set and test fold to score on.")],
    settings: SetOption = None,
    part: Annotated[str, typer.Option(help="Part of the data set: train, val or test.")] = "test",
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Write each clip's probabilities to this new .csv or .parquet file.")
    ] = "",
    psds: Annotated[
        bool, typer.Option("--psds", help="Also PSDS1, of taggers that say when tags sound; needs antiphon[psds].")
    ] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="With --psds: of change-point boxes; needs antiphon[boxes].")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a tagger on a part of a recipe's data set: in all, by tag, and the clips heard most wrongly."""
    from orchestrator.artifacts.evaluate import evaluate_checkpoint
    from orchestrator.recipes.loader import load_recipe

    loaded = load_recipe(data, settings)
    with only_json(as_json) as emit:
        result = evaluate_checkpoint(checkpoint, loaded, part, out=out, psds=psds, by_boxes=boxes)
        emit(result)
        if not as_json:
            print_scores(result)
        if result["quarantined"]:
            print_note(
                f"{result['quarantined']} clips of the data set cannot be used and are not scored; "
                "`antiphon data check` names them"
            )


def tag(
    checkpoint: CheckpointArg,
    files: Annotated[
        list[str] | None, typer.Argument(help="Audio files: wav, flac, ogg, opus, mp3; local or URIs.")
    ] = None,
    top: Annotated[int | None, typer.Option(help=f"Number of tags per file; default: {TOP}.")] = None,
    events: Annotated[
        bool, typer.Option("--events", help="Print when tags sound, too: onset and offset in seconds.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help=f"With --events and --stream: the probability at which an event begins; default: {BEGINS}."),
    ] = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="With --events: between change points, by antiphon[boxes].")
    ] = False,
    stream: StreamOption = "",
    off: OffOption = None,
    min_duration: MinDurationOption = None,
    merge_gap: MergeGapOption = None,
    hop: HopOption = None,
    carry: CarryOption = None,
    pcm: PcmOption = None,
    rate: RateOption = None,
    channels: ChannelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the most probable tags of audio files, or with --stream the events of one sound as they come."""
    from orchestrator.artifacts.tag import tag_files

    of_streams = {
        **{"off": off, "min_duration": min_duration, "merge_gap": merge_gap, "hop": hop, "carry": carry},
        **{"pcm": pcm, "rate": rate, "channels": channels},
    }
    begins = BEGINS if threshold is None else threshold
    if stream:
        if files or events or boxes or top is not None:
            no = "files, --events, --boxes and --top"
            raise ValueError(f"--stream {stream}: prints the events of one sound; leave out {no}")
        return tag_stream(checkpoint, stream, threshold=begins, as_json=as_json, **of_streams)
    if given := [name for name, value in of_streams.items() if value is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')}: is an option of --stream; give that, or leave it out")
    of_events = {"boxes": boxes, "threshold": threshold is not None}
    if not events and (given := [name for name, is_given in of_events.items() if is_given]):
        raise ValueError(f"--{given[0]}: is for events; give --events too, or leave it out")
    if not files:
        raise ValueError("no file to tag: name audio files, or one sound with --stream")
    with only_json(as_json) as emit:
        found = tag_files(
            checkpoint,
            files,
            top=TOP if top is None else top,
            events_above=begins if events else None,
            by_boxes=boxes,
        )
        in_time = {name: [asdict(event) for event in own] for name, own in found.events.items()}
        emit(
            {
                "files": found.tags,
                **({"events": in_time} if events else {}),
                "notes": found.notes,
                "broken": found.broken,
            }
        )
        for name, tags in {} if as_json else found.tags.items():
            print_out(name)
            for label, probability in tags:
                print_out(f"  {probability:6.3f}  {label}")
            for event in found.events.get(name, ()):
                print_out(f"  {event.onset:7.2f} to {event.offset:7.2f} s  {event.probability:6.3f}  {event.tag}")
        for name, notes in found.notes.items():
            print_note(f"{name}: {'; '.join(notes)}")
        for name, reason in found.broken.items():
            print_note(f"{name}: {reason}")
        if found.broken:
            raise typer.Exit(FAILED)
