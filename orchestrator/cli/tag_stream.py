"""`antiphon tag --stream`: events of a long or endless sound as they come. Parses and prints.

stdout has one JSON line for each opening and closing (--json), or one line for each event that has closed; on a
terminal also a table of what is open. `artifacts/stream.py` hears.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.cli.options import only_json
from orchestrator.cli.printing import cell, drop_stdout, print_note, print_out
from orchestrator.training.signals import StopSignals

if TYPE_CHECKING:
    from orchestrator.artifacts.stream import Heard
    from workloads.evaluate.event_tracker import StreamEvent

STOPPING = b"\nstopping: what is open is closed first; Ctrl-C again stops at once\n"
REFRESH_S = 0.2
UNREAD = "nobody reads the output"

StreamOption = Annotated[
    str,
    typer.Option("--stream", metavar="FILE|-|mic", help="Events of one long sound: a file, a pipe, mic or mic:DEVICE."),
]
OffOption = Annotated[
    float | None,
    typer.Option(help="With --stream: the least probability at which an event goes on; default: 0.6 of --threshold."),
]
MinDurationOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="With --stream: shorter events are none; default: 0.1.")
]
MergeGapOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="With --stream: a shorter pause ends no event; default: 0.3.")
]
HopOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="With --stream: sound heard at a time; default: 0.2, in windows 1."),
]
CarryOption = Annotated[
    bool | None,
    typer.Option(
        "--carry/--no-carry",
        help="With --stream: carry the network's state on, or hear windows; default: carry where it can.",
        show_default=False,
    ),
]
PcmOption = Annotated[
    str | None, typer.Option(metavar="FORM", help="With --stream: raw samples: u8, s16le, s16be, s32le or f32le.")
]
RateOption = Annotated[int | None, typer.Option(metavar="HZ", help="Of raw samples (--pcm), or of the microphone.")]
ChannelsOption = Annotated[int | None, typer.Option(help="Of raw samples (--pcm), interleaved; default: 1.")]


class Display(Protocol):
    """Shows what comes, in order."""

    def show(self, heard: "Heard") -> None: ...


def tag_stream(checkpoint: str, source: str, *, threshold: float, as_json: bool, **options: Any) -> None:
    """Hear a sound to its end, Ctrl-C, SIGTERM or until nobody reads the output: all of them are exit code 0.

    `options`: the other fields of a StreamRequest. Raises ValueError for mistakes, and where the sound turns out to be
    unusable, once what was heard is printed.
    """
    from orchestrator.artifacts.stream import StreamRequest, StreamSession

    request = StreamRequest(source, threshold=threshold, **options)
    with only_json(as_json) as emit:
        session = StreamSession(checkpoint, request)
        with (
            StopSignals(STOPPING) as signals,
            session.opened(signals.requested),
            _display(emit if as_json else None) as display,
        ):
            try:
                if as_json:
                    emit({"kind": "start", **session.facts, **asdict(session.rules)})
                for heard in session.hear():
                    display.show(heard)
            except BrokenPipeError:
                session.ended_by = UNREAD
                drop_stdout()
        report = session.report()
        if as_json and session.ended_by != UNREAD:
            try:
                emit({"kind": "end", **report})
            except BrokenPipeError:
                drop_stdout()
        _print_report(report)
        if session.error:
            raise ValueError(f"--stream {request.name}: {session.error}")


@contextmanager
def _display(emit: Any) -> Iterator[Display]:
    if emit is not None:
        yield _JsonLines(emit)
        return
    console = Console()
    if not console.is_terminal:
        yield _Lines()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield _LiveTable(live)


class _JsonLines:
    def __init__(self, emit: Any) -> None:
        self._emit = emit

    def show(self, heard: "Heard") -> None:
        for event in heard.events:
            kind = "opened" if event.offset is None else "closed"
            self._emit({"kind": kind, **asdict(event), "known_at": round(heard.seconds, 3)})


class _Lines:
    """A line for each event that has closed."""

    def show(self, heard: "Heard") -> None:
        for event in heard.events:
            if event.offset is not None:
                print_out(_line(event))


class _LiveTable:
    """Closed events as lines; below them a table of the open ones."""

    def __init__(self, live: Live) -> None:
        self._live, self._shown = live, 0.0

    def show(self, heard: "Heard") -> None:
        for event in heard.events:
            if event.offset is not None:
                self._live.console.print(cell(_line(event)), soft_wrap=True)
        if heard.events or time.monotonic() - self._shown >= REFRESH_S:
            self._shown = time.monotonic()
            self._live.update(_table(heard), refresh=True)


def _line(event: "StreamEvent") -> str:
    return f"  {event.onset:7.2f} to {event.offset:7.2f} s  {event.probability:6.3f}  {event.tag}"


def _table(heard: "Heard") -> Table:
    table = Table(title=f"{heard.seconds:.1f} s heard", title_justify="left")
    for column in ("since", "for", "probability", "sounds"):
        table.add_column(column, justify="left" if column == "sounds" else "right")
    for event in heard.open_events:
        lasts = f"{max(0.0, heard.seconds - event.onset):.1f} s"
        table.add_row(f"{event.onset:.2f} s", lasts, f"{event.probability:.3f}", cell(event.tag))
    return table


def _print_report(report: dict[str, Any]) -> None:
    """What was heard and what it took, to stderr."""
    for note in report["notes"]:
        print_note(f"{report['source']}: {note}")
    print_note(f"{report['seconds']:.1f} s heard, {report['events']} events; {report['ended_by']}")
    if report["piece_ms"] is None:
        return
    first = f", after the first {report['first_after_s']:g} s" if report["first_after_s"] else ""
    print_note(
        f"state {report['state']}; known {report['latency_s']:.2f} s after a step at most{first}, and what a piece of "
        f"{report['hop_s']:g} s takes: {report['piece_ms']:.1f} ms, the longest {report['largest_piece_ms']:.1f} ms"
    )
    print_note(f"{report['cpu_s_per_s']:.4f} s of CPU time a second of sound")
