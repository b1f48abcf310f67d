"""MLflow's model registry: a version for each model that a run delivered, and the alias `best` of each name.

Imported by `mlflow_run.py`, in the replaying process only (`pyfunc_model.py` is not imported by us: it is the code
inside a registered model). A version refers to the published tagger and does not hold
it: what lies in MLflow is code, signature and an example. Axes: B clips, T samples.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from numpy.typing import NDArray

import workloads
from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.tracking.log_reader import TrackingUnavailable, say
from orchestrator.tracking.record_mapping import RUN_ID_TAG
from workloads.runtime.opener import MARKER

BEST = "best"
DIGEST_TAG = "antiphon.weights_file_sha256"
PATIENCE_S = 30.0  # for the store that the tagger is read from
NOT_THERE = 501  # of the statuses from 500 on, the one that waiting does not change
TONE_HZ = 440.0
# What `pyfunc_model.py` and its copy of `workloads` import; all families' needs, since timm brings torchvision anyway.
LIBRARIES = (
    *("mlflow", "numpy", "pandas", "pydantic", "filelock", "safetensors"),
    *("torch", "torchaudio", "torchvision", "timm", "soundfile"),
)


class Unreadable(Exception):
    """A published tagger that cannot be registered, because it cannot be read."""


@dataclass(frozen=True)
class Published:
    """What a published tagger says of itself."""

    uri: str  # absolute
    digest: str  # SHA-256 of the file that holds the weights
    tags: tuple[str, ...]
    score: str  # the metric by which taggers of this kind are compared
    samples: int  # of one clip
    rate: int  # Hz


class Registry:
    """The registered models of one run's recipe; versions are found again by the tag that names their run."""

    def __init__(self, client: MlflowClient, run: Any, run_record: dict[str, Any]) -> None:
        self.client, self.run = client, run
        # a search's trial has a name of its own besides its recipe's
        self.run_id, self.recipe = run_record["run_id"], run_record.get("recipe", run_record["name"])

    def add(self, model: str, row: dict[str, Any]) -> None:
        """Register a row of the run's result, once, and move `best`. Raises TrackingUnavailable for what may pass.

        What does not pass (no registry, a damaged tagger) is said in the log.
        """
        name = f"{self.recipe}-{model}"
        try:
            tagger = _read(row["checkpoint"])
            if not self._known(name, tagger):
                self._create(name, model, row, tagger)
            self._choose_best(name, f"val.{tagger.score}")
        except Unreadable as reason:
            say(f"{name} is not registered: {reason}")
        except MlflowException as error:
            status = error.get_http_status_code()
            if status >= 500 and status != NOT_THERE:
                raise TrackingUnavailable(_describe(error)) from error
            say(f"{name} is not registered, MLflow refuses it: {_describe(error)}")
        except Exception as error:  # HTTP client, database and artifact store have exceptions of their own
            raise TrackingUnavailable(_describe(error)) from error

    def _versions(self, name: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name='{name}'", page_token=token)
            found += page
            if not (token := page.token):
                return found

    def _known(self, name: str, tagger: Published) -> bool:
        """Whether this run's tagger has a version. One of other weights, which a later attempt replaced, is removed."""
        ours = [version for version in self._versions(name) if version.tags.get(RUN_ID_TAG) == self.run_id]
        for version in ours:
            if version.tags.get(DIGEST_TAG) != tagger.digest:
                self.client.delete_model_version(name, version.version)
        return any(version.tags.get(DIGEST_TAG) == tagger.digest for version in ours)

    def _create(self, name: str, model: str, row: dict[str, Any], tagger: Published) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run_id, place = self.run.info.run_id, f"models/{model}"
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            self.client.log_artifacts(run_id, str(_packed(tagger, Path(scratch))), place)
        tags = {RUN_ID_TAG: self.run_id, DIGEST_TAG: tagger.digest, "antiphon.recipe": self.recipe}
        tags |= {"antiphon.checkpoint": tagger.uri, "antiphon.weights_sha256": row["weights_sha256"]}
        scores = {part: row[part].get(tagger.score, math.nan) for part in ("val", "test")}
        tags |= {f"{part}.{tagger.score}": repr(value) for part, value in scores.items() if math.isfinite(value)}
        self.client.create_model_version(
            name,
            f"{self.run.info.artifact_uri}/{place}",
            run_id,
            tags=tags,
            description=f"{model} of run {self.run_id}. The weights stay at {tagger.uri}",
        )

    def _choose_best(self, name: str, score: str) -> None:
        """Give the alias to the highest score, of equals to the oldest; asked again, as other runs do the same."""
        for _ in range(3):
            scored = [
                (float(version.tags[score]), -int(version.version))
                for version in self._versions(name)
                if score in version.tags
            ]
            best = str(-max(scored)[1]) if scored else None
            if best is None or self.client.get_registered_model(name).aliases.get(BEST) == best:
                return
            self.client.set_registered_model_alias(name, BEST, best)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _read(uri: str) -> Published:
    """Read a published tagger's state after comparing every file's digest; raises Unreadable."""
    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-") as scratch:
            folder = retry_while_unavailable(
                lambda: object_store.fetch(uri, Path(scratch) / "tagger"), what=uri, patience_s=PATIENCE_S
            )
            digests = json.loads((folder / MARKER).read_text())["files"]
            for name, digest in digests.items():  # as `workloads.checkpoint` does, which would bring torch along
                with (folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        raise ValueError(f"checkpoint {uri}: {name} differs from its SHA-256")
            state = json.loads((folder / "state.json").read_text())
        return Published(
            uri=str(object_store.local_path(uri)) if object_store.is_local(uri) else uri,
            digest=digests["weights.safetensors"],
            tags=tuple(state["tags"]),
            score="accuracy" if state["labels"] == "single" else "mAP",
            samples=round(state["clip_seconds"] * state["clip_rate"]),
            rate=state["clip_rate"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(_describe(error)) from error


def _packed(tagger: Published, scratch: Path) -> Path:
    """The model's folder in MLflow's form: code, requirements, signature and example, no weights and no pickle."""
    package, folder = Path(workloads.__file__).parent, scratch / "model"
    shutil.copytree(package, scratch / package.name, ignore=_all_but_code)
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        code_paths=[str(scratch / package.name)],
        model_config={"checkpoint": tagger.uri, "weights_file_sha256": tagger.digest},
        pip_requirements=requirements(tagger.uri),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, tagger.samples))]),
            outputs=Schema([ColSpec("float", tag) for tag in tagger.tags]),
        ),
        input_example=_tone(tagger),
        metadata={"clip_rate": tagger.rate},
    )
    return folder


def _all_but_code(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == "__pycache__" or not (name.endswith(".py") or os.path.isdir(os.path.join(folder, name)))
    ]


def requirements(uri: str) -> list[str]:
    """The packages that a served tagger needs, in the versions of this process; `uri` tells how weights are fetched."""
    fs, _ = object_store.filesystem(uri)
    files = {"fsspec", type(fs).__module__.partition(".")[0]}  # s3fs, gcsfs ... are called like their modules
    # A local build's mark (+cpu, +cu128) names no package of an index.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*LIBRARIES, *sorted(files))]


def _tone(tagger: Published) -> NDArray[np.float32]:
    """One quiet waveform_BT; in eighths, because the example is stored as decimal text, twice."""
    seconds_T = np.arange(tagger.samples) / tagger.rate
    tone_T = np.round(2 * np.sin(2 * np.pi * TONE_HZ * seconds_T)) / 8
    return tone_T.astype(np.float32)[None]
