"""The registered model's code (MLflow runs this file when the model is loaded; no pickle is involved).

In    a table with one column `audio`: a file's bytes (wav, flac, ogg, mp3; base64 over HTTP)
Out   a table with one column `embedding`: one vector a clip, the mean over valid frames, as the probes use it
Why   `mlflow models serve` and `mlflow.pyfunc.load_model` need no knowledge of aut
Price decodes one clip after the other and keeps no queue: under load `aut` serves instead
"""

import base64
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class EncoderModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The encoder folder behind MLflow's generic interface."""

    def load_context(self, context: Any) -> None:
        from aut.encoders import AudioEncoder, open_encoder

        self.encoder = AudioEncoder(open_encoder(Path(context.artifacts["encoder"])))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Raises aut.audio.decode.Unreadable for a clip that is no audio."""
        from aut.audio.decode import decode
        from aut.units import RATE_HZ

        clips = [decode(_audio_bytes(value)) for value in model_input["audio"]]
        vectors_BD = self.encoder.embed([c.pcm_T for c in clips], rate_hz=RATE_HZ)
        return pd.DataFrame({"embedding": vectors_BD.astype(float).tolist()})


def _audio_bytes(value: Any) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else bytes(value)


mlflow.models.set_model(EncoderModel())
