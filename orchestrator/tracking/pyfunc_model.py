"""The code of a registered model: MLflow runs this file, beside a copy of `workloads`, in whatever process serves it.

Knows nothing of the orchestrator, which is not there. The weights stay where the run published them; the model's
configuration says where that is and which bytes they are. `registry.py` puts the three together.
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

# Newer AWS SDKs ask for checksums that older S3 servers do not know.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


class ServedTagger(PythonModel):
    """Waveforms of one clip's length in, the probability of each tag out."""

    def load_context(self, context: Any) -> None:
        """Fetch the published tagger; ValueError if it is gone, damaged, or no longer the one that was registered."""
        from workloads.evaluate.predict import load_tagger
        from workloads.runtime.checkpoint import file_digest

        uri, digest = context.model_config["checkpoint"], context.model_config["weights_file_sha256"]
        with tempfile.TemporaryDirectory() as scratch:
            folder = _fetch(uri, Path(scratch) / "tagger")
            self.tagger, _ = load_tagger(folder)
            if file_digest(folder / "weights.safetensors") != digest:
                raise ValueError(f"checkpoint {uri}: holds other weights than those that were registered")

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
        raise ValueError(f"checkpoint {uri}: it is not there, as seen from this machine")
    folder.mkdir()
    for part in fs.ls(path, detail=False):
        fs.get_file(part, str(folder / part.rstrip("/").rsplit("/", 1)[-1]))
    return folder


set_model(ServedTagger())
