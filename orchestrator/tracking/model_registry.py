"""MLflow's model registry: one version for each model that a run published, and the alias `best` of each name.

Imports MLflow, so `mlflow_run.py` imports it late, after MLflow's environment variables are set. `pyfunc_model.py` is
the code inside a registered model and not imported here. A version refers to the published tagger and does not hold its
weights: MLflow stores code, signature and an example. Axes: B clips, T samples.
"""

import hashlib
import math
import os
import shutil
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
from orchestrator.storage import object_store, published_folders
from orchestrator.storage.retry import describe_error, retry_while_unavailable
from orchestrator.tracking.log_reader import TrackingUnavailable, log_line
from orchestrator.tracking.record_mapping import RUN_ID_TAG
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.json_files import TaggerState, parse_json, parse_marker
from workloads.runtime.redaction import redacted
from workloads.runtime.scratch import scratch_folder

BEST = "best"
DIGEST_TAG = "antiphon.weights_file_sha256"
REPLACED_TAG = "antiphon.replaced"  # on a version whose run has delivered other weights since
READ_RETRY_S = 30.0  # how long reading the tagger is retried
NOT_IMPLEMENTED = 501  # the HTTP status from 500 on that a retry does not change
TONE_HZ = 440.0
# What `pyfunc_model.py` and its copy of `workloads` import, for all families: timm depends on torchvision anyway.
LIBRARIES = (
    *("mlflow", "numpy", "pandas", "pydantic", "filelock", "safetensors"),
    *("torch", "torchaudio", "torchvision", "timm", "soundfile", "miniaudio"),
)


class UnreadableTagger(Exception):
    """A published tagger cannot be registered because it cannot be read."""


@dataclass(frozen=True)
class PublishedTagger:
    """What the registry needs to know about a published tagger."""

    uri: str  # absolute
    digest: str  # SHA-256 of the file that holds the weights
    tags: tuple[str, ...]
    score: str  # the metric that chooses the best version: accuracy or mAP
    samples: int  # of one clip
    rate: int  # Hz


class ModelRegistry:
    """The registered models of one run's recipe; versions are looked up by the tag that holds their run's id.

    Contract: called by the replayer at least once per result, and safe to repeat: a version whose run and weights are
    registered is not created again. Several replayers may write to the same name at once; see `_choose_best`. A kill
    between upload and version leaves artifacts of the run that the next call overwrites.
    """

    def __init__(self, client: MlflowClient, run: Any, run_record: dict[str, Any]) -> None:
        self.client, self.run = client, run
        # a search's trial has a name other than its recipe's
        self.run_id, self.recipe = run_record["run_id"], run_record.get("recipe", run_record["name"])

    def register(self, model: str, row: dict[str, Any]) -> None:
        """Register the tagger of a result row and move `best`. Raises TrackingUnavailable for transient errors.

        Permanent errors (no registry, a damaged tagger) are printed to the replayer's log.
        """
        name = f"{self.recipe}-{model}"
        try:
            tagger = _read_tagger(row["checkpoint"])
            if not self._is_registered(name, tagger):
                self._create_version(name, model, row, tagger)
            self._choose_best(name, f"val.{tagger.score}")
        except UnreadableTagger as reason:
            log_line(f"{name} is not registered: {reason}")
        except MlflowException as error:
            status = error.get_http_status_code()
            if status >= 500 and status != NOT_IMPLEMENTED:
                raise TrackingUnavailable(_describe(error)) from error
            log_line(f"{name} is not registered, MLflow refuses it: {_describe(error)}")
        except Exception as error:  # HTTP client, database and artifact store each raise their own types
            raise TrackingUnavailable(_describe(error)) from error

    def _versions(self, name: str) -> list[Any]:
        versions: list[Any] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name='{name}'", page_token=token)
            versions += page
            if not (token := page.token):
                return versions

    def _is_registered(self, name: str, tagger: PublishedTagger) -> bool:
        """Whether this run's tagger has a version; the run's versions of other, since replaced weights are deleted.

        One that somebody's alias points to stays, marked: what serves by that alias must not lose its version.
        """
        ours = [version for version in self._versions(name) if version.tags.get(RUN_ID_TAG) == self.run_id]
        replaced = [version for version in ours if version.tags.get(DIGEST_TAG) != tagger.digest]
        aliases = self.client.get_registered_model(name).aliases if replaced else {}
        for version in replaced:
            others = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
            if set(others) <= {BEST}:
                self.client.delete_model_version(name, version.version)
            elif REPLACED_TAG not in version.tags:
                self.client.set_model_version_tag(name, version.version, REPLACED_TAG, "true")
                log_line(f"{name} version {version.version} was replaced and stays, because of {', '.join(others)}")
        return any(version.tags.get(DIGEST_TAG) == tagger.digest for version in ours)

    def _create_version(self, name: str, model: str, row: dict[str, Any], tagger: PublishedTagger) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run_id, artifact_path = self.run.info.run_id, f"models/{model}"
        with scratch_folder() as scratch:
            self.client.log_artifacts(run_id, str(_save_model(tagger, scratch)), artifact_path)
        self.client.create_model_version(
            name,
            f"{self.run.info.artifact_uri}/{artifact_path}",
            run_id,
            tags=self._version_tags(row, tagger),
            description=f"{model} of run {self.run_id}. The weights stay at {tagger.uri}",
        )

    def _version_tags(self, row: dict[str, Any], tagger: PublishedTagger) -> dict[str, str]:
        tags = {RUN_ID_TAG: self.run_id, DIGEST_TAG: tagger.digest, "antiphon.recipe": self.recipe}
        tags |= {"antiphon.checkpoint": tagger.uri, "antiphon.weights_sha256": row["weights_sha256"]}
        scores = {part: row[part].get(tagger.score, math.nan) for part in ("val", "test")}
        return tags | {f"{part}.{tagger.score}": repr(value) for part, value in scores.items() if math.isfinite(value)}

    def _choose_best(self, name: str, score: str) -> None:
        """Move the alias to the version with the highest score, the oldest of equals.

        Read again afterwards, up to three times, since replayers of other runs may move it in between.
        """
        for _ in range(3):
            scored = [
                (float(version.tags[score]), -int(version.version))
                for version in self._versions(name)
                if score in version.tags and REPLACED_TAG not in version.tags
            ]
            best = str(-max(scored)[1]) if scored else None
            if best is None or self.client.get_registered_model(name).aliases.get(BEST) == best:
                return
            self.client.set_registered_model_alias(name, BEST, best)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {redacted(describe_error(error))[:500]}"


def _read_tagger(uri: str) -> PublishedTagger:
    """Read a published tagger's state after comparing the digest of every file; raises UnreadableTagger."""
    try:
        with scratch_folder() as scratch:
            # the attempt's own folder, which no later attempt replaces: a registered version refers to it
            uri = retry_while_unavailable(
                lambda: published_folders.published_folder(uri), what=uri, patience_s=READ_RETRY_S
            )
            folder = retry_while_unavailable(
                lambda: published_folders.fetch(uri, scratch / "tagger"), what=uri, patience_s=READ_RETRY_S
            )
            digests = _checked_digests(uri, folder)
            state = parse_json((folder / "state.json").read_bytes(), f"checkpoint {uri}: state.json", TaggerState)
        return PublishedTagger(
            uri=str(object_store.local_path(uri)) if object_store.is_local(uri) else uri,
            digest=digests["weights.safetensors"],
            tags=tuple(state["tags"]),
            score="accuracy" if state["labels"] == "single" else "mAP",
            samples=round(state["clip_seconds"] * state["clip_rate"]),
            rate=state["clip_rate"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableTagger(_describe(error)) from error


def _checked_digests(uri: str, folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of a fetched tagger; ValueError where a file differs.

    `workloads.runtime.checkpoint` checks the same, but importing it imports torch.
    """
    digests = parse_marker((folder / MARKER).read_bytes(), f"checkpoint {uri}: {MARKER}")
    for name, digest in digests.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"checkpoint {uri}: {name} differs from its SHA-256")
    return digests


def _save_model(tagger: PublishedTagger, scratch: Path) -> Path:
    """Write the model's folder in MLflow's format: code, requirements, signature, example; no weights, no pickle."""
    package, folder = Path(workloads.__file__).parent, scratch / "model"
    shutil.copytree(package, scratch / package.name, ignore=_not_code)
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
        input_example=_example_waveform(tagger),
        metadata={"clip_rate": tagger.rate},
    )
    return folder


def _not_code(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == "__pycache__" or not (name.endswith(".py") or os.path.isdir(os.path.join(folder, name)))
    ]


def requirements(uri: str) -> list[str]:
    """The packages that a served tagger needs, in this process's versions; includes what reads the weights' `uri`."""
    fs, _ = object_store.filesystem(uri)
    files = {"fsspec", type(fs).__module__.partition(".")[0]}  # packages such as s3fs are named like their modules
    # package indexes do not have local version labels (+cpu, +cu128)
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*LIBRARIES, *sorted(files))]


def _example_waveform(tagger: PublishedTagger) -> NDArray[np.float32]:
    """One quiet tone_BT, in multiples of 1/8: MLflow stores the example as decimal text, twice."""
    seconds_T = np.arange(tagger.samples) / tagger.rate
    tone_T = np.round(2 * np.sin(2 * np.pi * TONE_HZ * seconds_T)) / 8
    return tone_T.astype(np.float32)[None]
