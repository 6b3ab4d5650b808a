"""The registered model's code (MLflow runs this file when the model is loaded; no pickle is involved).

In    a table with one column `audio`: a file's bytes (wav, flac, ogg, mp3; base64 over HTTP)
Out   a table: `embedding`, the mean over valid frames [D]; `valid_frames`
Price one clip at a time: `aut` serves batches, this is for `mlflow models serve` and `mlflow.pyfunc.load_model`
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mlflow


class EncoderModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The encoder folder behind MLflow's generic interface."""

    def load_context(self, context: Any) -> None:
        from aut.encoders import open_encoder

        self.encoder = open_encoder(Path(context.artifacts["encoder"]))

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Raises aut.audio.decode.Unreadable for a clip that is no audio."""
        rows = [self._embed(_audio_bytes(value)) for value in model_input["audio"]]
        return pd.DataFrame(rows, columns=["embedding", "valid_frames"])

    def _embed(self, data: bytes) -> tuple[list[float], int]:
        from aut.audio.decode import decode

        pcm_T = decode(data, length_s=30.0).pcm
        h_BFD, f_B = self.encoder.encode(pcm_T[None], np.array([len(pcm_T)], dtype=np.int64))
        frames = int(f_B[0])
        return h_BFD[0, :frames].mean(axis=0, dtype=np.float64).tolist(), frames


def _audio_bytes(value: Any) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else bytes(value)


mlflow.models.set_model(EncoderModel())
