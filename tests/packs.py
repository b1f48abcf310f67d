"""A small data set of real files, and packed forms of it."""

import os
from pathlib import Path

import numpy as np
import soundfile

from orchestrator.artifacts.pack import PackRequest, pack
from workloads.config.recipe import Recipe
from workloads.data.pack import Manifest
from workloads.data.prepare import PreparedData

TAGS = ("low", "mid", "high")


def write_clips(folder: Path, num: int = 60, *, seconds: tuple[float, float] = (0.6, 1.8)) -> list[str]:
    """Tones with noise, of lengths between two, of several rates and formats, with a table; the settings of a recipe
    that reads it."""
    (folder / "audio").mkdir(parents=True)
    rows, random = ["clip_id,path,tags,fold,source"], np.random.default_rng(0)
    for number in range(num):
        tag, rate = TAGS[number % 7 % 3], (22_050, 16_000, 44_100)[number % 3]
        time_T = np.arange(int(rate * random.uniform(*seconds))) / rate
        x_T = 0.3 * np.sin(2 * np.pi * (300 + 600 * TAGS.index(tag)) * time_T) + 0.02 * random.standard_normal(
            len(time_T)
        )
        path = f"audio/{number}.{('wav', 'flac')[number % 2]}"
        soundfile.write(folder / path, x_T, rate, subtype="PCM_24")
        rows.append(f"clip {number:03},{path},{tag},{1 + number % 5},take{number}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    settings = {"format": "manifest", "manifest": folder / "clips.csv", "root": folder, "labels": "single"}
    return [f"data.{key}={value}" for key, value in settings.items()]


def pack_as(recipe: Recipe, out: str, form: str, *, archive_mb: float = 0.5) -> Manifest:
    """Pack the recipe's data set at its rate, in this process."""
    return pack(PackRequest(recipe, out, form, recipe.rate, archive_mb), lambda done, total: None)


def damage_clip(prepared: PreparedData, clip_id: str) -> Path:
    """Change one byte in the middle of a clip of a local pack; returns the archive."""
    root, entry = Path(prepared.recipe.data.root), prepared.cache.entry(clip_id)
    path = sorted((root / "archives").iterdir())[entry.archive]
    with path.open("r+b") as file:
        file.seek(entry.offset + entry.size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return path
