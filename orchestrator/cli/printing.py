"""The one place that prints what users named: tags, files, paths, runs. Does not depend on what it prints."""

import errno
import io
import os
import sys
from typing import Any

import typer
from rich.text import Text

from workloads.runtime.redaction import redacted


def printable(text: str) -> str:
    """The text with the characters that a terminal obeys, or cannot show, written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_out(line: str) -> None:
    """Print one line of a result to stdout, without secrets."""
    typer.echo(printable(redacted(line)))


def print_note(line: str) -> None:
    """Print one line to stderr, which keeps stdout for results."""
    typer.echo(printable(redacted(line)), err=True)


def print_warning(line: str) -> None:
    """Print one warning to stderr: the command goes on."""
    print_note(f"warning: {line}")


def cell(text: str) -> Text:
    """A table's cell, or a line on a Rich console: brackets in it are no markup."""
    return Text(printable(redacted(text)))


def open_streams() -> None:
    """Make stdout and stderr usable where nobody reads them; call it once, first of all.

    What is printed to one that the caller has closed goes nowhere: Python has None in its place, and the next file that
    is opened would get its number, and what other programs print. So does what is printed to a terminal that is closed
    while the command goes on or saves.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            _to_nowhere(descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif os.isatty(descriptor):
            stream = io.BufferedWriter(OutputDescriptor(descriptor))
            setattr(sys, name, io.TextIOWrapper(stream, encoding=getattr(sys, name).encoding, line_buffering=True))


class OutputDescriptor(io.FileIO):
    """A file, pipe or terminal that is written to; what is written to a terminal that is closed by then goes nowhere.

    Whoever opened the descriptor closes it.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_terminal = os.isatty(descriptor)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO or not self._is_terminal:  # of a file it is a fault of its disk
                raise
            _to_nowhere(self.fileno())
            return super().write(data)


def drop_stdout() -> None:
    """What is still to be written to a pipe that nobody reads, or to a full disk, goes nowhere, also at the exit."""
    _to_nowhere(sys.stdout.fileno())


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def show_every_name() -> None:
    """Let stdout and stderr show names that their encoding cannot, as escapes; call it once, before anything prints."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
