"""How numbers, durations, times and labels are printed on report pages. Does not depend on runs or searches."""

import html
from datetime import UTC, datetime

NOT_AVAILABLE = "-"


def format_score(value: float | None) -> str:
    """A metric or an objective with four decimals."""
    return NOT_AVAILABLE if value is None else f"{value:.4f}"


def format_count(value: int | None) -> str:
    """An integer with thousands separators."""
    return NOT_AVAILABLE if value is None else f"{value:,}"


def format_quantity(value: float | None) -> str:
    """Three digits and the prefix of a unit: 541 M."""
    if value is None:
        return NOT_AVAILABLE
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def format_duration(seconds: float | None) -> str:
    """Seconds below 2 minutes, minutes below 90 minutes, hours and minutes above."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds >= 5400:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"


def format_time(seconds: float) -> str:
    """Seconds since the epoch as a date and time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 trial, 2 trials."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def escape_label(text: str) -> str:
    """Text for a figure: Plotly interprets some HTML tags in labels, but prints &quot; literally."""
    return html.escape(text, quote=False)
