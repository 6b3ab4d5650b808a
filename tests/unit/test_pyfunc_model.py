"""The registered model's code, with an encoder that hears at another rate than clips are decoded at."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from aut.encoders import AudioEncoder

RATE = 24_000


def heard(clips: list[Any], poolings: list[str]) -> dict[str, Any]:
    return {poolings[0]: np.array([[len(clip)] for clip in clips], np.float32)}


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # mlflow's, of `predict`
def test_clips_reach_an_encoder_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "aut.edges.pyfunc_model", raising=False)
    from aut.edges.pyfunc_model import EncoderModel

    data = io.BytesIO()
    soundfile.write(data, np.full(16_000, 0.1, np.float32), 16_000, format="WAV")
    model = EncoderModel()
    about = {"name": "fake", "kind": "fake", "digest": "", "rate_hz": RATE, "width": 1, "hop_s": 0.02}
    encoder: Any = SimpleNamespace(**about, pooled=heard)
    model.encoder = AudioEncoder(encoder)
    assert model.predict(None, pd.DataFrame({"audio": [data.getvalue()]}))["embedding"].tolist() == [[RATE]]
