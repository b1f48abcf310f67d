"""Embeddings of a published tagger, of files or a data set, as a table; and a linear model on them. Loads torch when
used.

Axes: N clips of a set or files, D features.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.evaluate import prepared_like
from orchestrator.artifacts.predictions import check_out, store_new_file
from orchestrator.artifacts.tag import LoadedTagger, load_for_tagging
from orchestrator.storage.fsspec_files import FsspecFiles
from workloads.config.recipe import Recipe
from workloads.runtime.cpu import use_cpu
from workloads.runtime.opener import unreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = (".parquet", ".npz")


def embed_files(uri: str, files: Sequence[str], out: str) -> dict[str, Any]:
    """Write the embedding of each file: columns `name`, `seconds`, `embedding`; returns what was left out, and why.

    A file that cannot be read or heard does not end the others. Raises ValueError as `check_out`, for a folder that
    holds no tagger, and where no file could be heard.
    """
    import numpy as np

    from workloads.evaluate.predict import BadNumbers
    from workloads.evaluate.sounds import hear_sound

    check_out(out, FORMATS)
    loaded, opener = load_for_tagging(uri), FsspecFiles()
    rows: list[tuple[str, float, Any]] = []
    broken: dict[str, str] = {}
    for name in files:
        try:
            with opener.open(name) as file:
                sound = loaded.load(file)
            heard = hear_sound(loaded.tagger, sound.x_T, loaded.long_clips, embeddings=True)
        except BadNumbers as error:
            broken[name] = str(error)
        except Exception as error:  # whatever goes wrong while one file is opened is that file's fault
            broken[name] = unreadable(error)
        else:
            assert heard.embedding_D is not None, "it was asked for"
            rows.append((name, len(sound.x_T) / loaded.tagger.clip_rate, heard.embedding_D.numpy()))
    if not rows:
        raise ValueError(f"no file could be heard; {next(iter(broken))}: {next(iter(broken.values()))}")
    names, seconds, embeddings = zip(*rows, strict=True)
    _write(out, {"name": names, "seconds": seconds}, np.stack(embeddings))
    return {**_about(loaded), "files": len(rows), "features": len(embeddings[0]), "broken": broken, "out": out}


def embed_data(uri: str, recipe: Recipe, *, out: str = "", with_probe: bool = False) -> dict[str, Any]:
    """Embed every clip of a recipe's data set; write them to `out`, and score a linear model on them if asked.

    Columns `clip_id`, `source`, `fold`, `true_tags`, `embedding`. The data set need not have the tagger's tags. Raises
    ValueError as `check_out` and `probe`, for a folder that holds no tagger, and for features that are not finite.
    """
    import torch

    from workloads.evaluate.embed import embed_clips, probe
    from workloads.evaluate.predict import BadNumbers

    if out:
        check_out(out, FORMATS)
    loaded = load_for_tagging(uri)
    use_cpu(recipe.train.threads)
    prepared = prepared_like(loaded.tagger, loaded.state, recipe)
    dataset = prepared.dataset
    clips = dataset.clips
    if with_probe and not dataset.has_labels:
        raise ValueError("--probe: no clip of this data set has a label, so nothing can be learned; label some")
    try:
        embedding_ND = embed_clips(loaded.tagger, clips, prepared)
    except BadNumbers as error:
        raise ValueError(f"checkpoint {uri!r}: {error}") from None
    if out:
        columns: dict[str, Sequence[Any]] = {
            "clip_id": [clip.clip_id for clip in clips],
            "source": [clip.source for clip in clips],
            "fold": [clip.fold for clip in clips],
            "true_tags": [";".join(clip.tags) for clip in clips],
        }
        _write(out, columns, embedding_ND)
    found: dict[str, Any] = {"clips": len(clips), "features": embedding_ND.shape[1], "out": out or None}
    if with_probe:
        rows = [row for row, clip in enumerate(clips) if clip.labelled]
        labelled = [clips[row] for row in rows]
        result = probe(embedding_ND[rows], torch.from_numpy(dataset.targets(labelled)), labelled, dataset.labels)
        found["probe"] = asdict(result) | {"labels": dataset.labels, "unseen_fold": _unseen_fold(loaded, dataset)}
    return {**_about(loaded), **found, "quarantined": len(prepared.quarantined)}


def _unseen_fold(loaded: LoadedTagger, dataset: Any) -> int | None:
    """The only fold whose clips the tagger has not learned from, where it was trained on this data set."""
    trained_on = loaded.state.get("data", {})
    return trained_on["test_fold"] if trained_on.get("fingerprint") == dataset.fingerprint() else None


def _about(loaded: LoadedTagger) -> dict[str, Any]:
    return {"checkpoint": loaded.uri, "model": loaded.state["name"]}


def _write(out: str, columns: dict[str, Sequence[Any]], embedding_ND: "NDArray[np.float32]") -> None:
    """A row for each clip; the embedding is one column, a list of float32, or a matrix in an NPZ."""
    content = _npz(columns, embedding_ND) if PurePath(out).suffix == ".npz" else _parquet(columns, embedding_ND)
    store_new_file(out, content)


def _npz(columns: dict[str, Sequence[Any]], embedding_ND: "NDArray[np.float32]") -> bytes:
    import numpy as np

    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.array(list(values)) for name, values in columns.items()}
    np.savez(file, **arrays, embedding=embedding_ND)
    return file.getvalue()


def _storable(value: Any) -> Any:
    """Parquet holds UTF-8 only: of other file names the bytes that are not are escapes, as on the terminal."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _parquet(columns: dict[str, Sequence[Any]], embedding_ND: "NDArray[np.float32]") -> bytes:
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(embedding_ND.reshape(-1))
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, embedding_ND.shape[1])
    file = io.BytesIO()
    table = pyarrow.table(
        {**{name: [*map(_storable, values)] for name, values in columns.items()}, "embedding": vectors}
    )
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()
