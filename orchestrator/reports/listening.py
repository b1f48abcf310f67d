"""The clips that a run's models got most wrong, for the report: the sound, its spectrogram, what was said of it."""

import math
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from orchestrator.reports.figure_style import SPECTROGRAM, new_figure
from orchestrator.reports.html_page import drawn
from orchestrator.reports.run_history import RunHistory

TICKS_HZ = (0, 250, 500, 1000, 2000, 4000, 8000, 16000)
Row = dict[str, Any]


def clips(history: RunHistory) -> list[Row]:
    """A row for each clip: its id, true tags, length, sound as a data URI, figure, and a table of what was said."""
    return [
        {
            "clip_id": clip["clip_id"],
            "truth": ", ".join(clip["truth"]) or "no tag",
            "seconds": _seconds(clip),
            "audio": Markup("data:audio/mpeg;base64," + clip["audio"] + "=" * (-len(clip["audio"]) % 4)),
            "figure": drawn(spectrogram(clip)),
            "models": [
                {"model": model, "said": _probabilities(row["said"]), "truth": _probabilities(row["truth"])}
                for model, row in clip["models"].items()
            ],
        }
        for clip in history.mistakes
    ]


def _seconds(clip: Row) -> str:
    whole, played = clip["whole_seconds"], clip["seconds"]
    return f"{whole:g} s" if whole - played < 0.01 else f"the first {played:g} of {whole:g} s"


def _probabilities(by_tag: dict[str, float]) -> str:
    return ", ".join(f"{tag} {value:.2f}" for tag, value in by_tag.items()) or "-"


def spectrogram(clip: Row) -> go.Figure:
    """A log-mel spectrogram over seconds; its axis has the frequencies that the bands of the HTK scale stand for."""
    rows, top = clip["mel"], clip["top_hz"]
    step = clip["seconds"] / len(rows[0])
    figure = new_figure(height=230)
    figure.add_heatmap(z=rows, x0=step / 2, dx=step, colorscale=SPECTROGRAM, showscale=False, hoverinfo="skip")
    ticks = [hz for hz in TICKS_HZ if hz <= top]
    places = [band_of(hz, top_hz=top, bands=len(rows)) for hz in ticks]
    figure.update_yaxes(title="Hz", tickvals=places, ticktext=[f"{hz:,}" for hz in ticks], showgrid=False)
    figure.update_layout(margin={"t": 10, "b": 45})
    return figure.update_xaxes(title="seconds", range=[0, clip["seconds"]], showgrid=False)


def band_of(hz: float, *, top_hz: float, bands: int) -> float:
    """The place of a frequency among bands whose centres are even in mel, 2595 log10(1 + f / 700) (HTK)."""
    mel, top = (2595 * math.log10(1 + f / 700) for f in (hz, top_hz))
    return mel / top * (bands + 1) - 1
