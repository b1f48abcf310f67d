"""The code of a registered model: MLflow runs this file, beside a copy of `workloads`, in the process that serves it.

Does not depend on the orchestrator, which is not installed there. The weights stay where the run published them; the
model's configuration holds their URI and SHA-256. `model_registry.py` packs code and configuration.
Axes: B clips, T samples, C tags.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

# Newer AWS SDKs send checksums that older S3 servers reject.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


class ServedTagger(PythonModel):
    """MLflow's interface to a tagger: waveforms of one clip's length in, the probability of each tag out."""

    def load_context(self, context: Any) -> None:
        """Fetch the tagger, once per process; ValueError if it is missing, damaged, or not the registered one."""
        from workloads.evaluate.predict import load_tagger
        from workloads.runtime.checkpoint import file_digest

        uri, digest = context.model_config["checkpoint"], context.model_config["weights_file_sha256"]
        with tempfile.TemporaryDirectory() as scratch:
            folder = _fetch(uri, Path(scratch) / "tagger")
            self.tagger, _ = load_tagger(folder, uri)
            if file_digest(folder / "weights.safetensors") != digest:
                raise ValueError(
                    f"checkpoint {uri}: holds other weights than those that were registered; register it again"
                )

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> pd.DataFrame:
        """Probabilities of float32 waveforms (B, T) at the tagger's rate: one row a waveform, one column a tag."""
        import torch

        from workloads.models.probabilities import probabilities

        x_BT = torch.tensor(np.asarray(model_input, dtype=np.float32))
        with torch.no_grad():
            logits_BC = self.tagger.tag(x_BT)
        return pd.DataFrame(probabilities(logits_BC, self.tagger.labels).numpy(), columns=list(self.tagger.tags))


def _fetch(uri: str, folder: Path) -> Path:
    import fsspec

    fs, path = fsspec.core.url_to_fs(uri)
    if not fs.exists(path):
        raise ValueError(f"checkpoint {uri}: not found from this machine; make that address reachable here")
    folder.mkdir()
    for file in fs.ls(path, detail=False):
        fs.get_file(file, str(folder / file.rstrip("/").rsplit("/", 1)[-1]))
    return folder


set_model(ServedTagger())
