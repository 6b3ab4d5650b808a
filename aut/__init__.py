"""aut: make audio encoders from Whisper, and prove them.

import aut
encoder = aut.load_encoder("models:/whisper-aut@champion")
embeddings, valid_frames = encoder.encode(waveforms, rate_hz=16_000)
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "adapters", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Torch and MLflow take seconds to import: `aut --help` must not pay for them.
    if name == "load_encoder":
        from aut.edges.registry import load_encoder

        return load_encoder
    if name == "adapters":
        from importlib import import_module

        return import_module("aut.adapters")
    if name in ("Client", "AsyncClient"):
        from aut import client

        return getattr(client, name)
    raise AttributeError(f"module 'aut' has no attribute '{name}'")
