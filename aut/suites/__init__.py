"""Other people's benchmark suites: our encoder under the interface that each of them expects.

In    an encoder folder, or an address of the registry (models:/whisper-aut@champion)
Out   a torch module that X-ARES, XARES-LLM or HEAR 2021 runs unchanged, one file a suite
Why   a suite gives clips as one tensor, most of them without lengths; what it says about padding decides what the
      encoder may see. Price: a clip that a suite has padded counts as long as the padding, where it gives no mask.
      The suites need torchaudio or TensorFlow: benchmarks/peers/suite_checks.py runs their own checkers in an
      environment of its own, tests/unit repeats what they check.
Run   see the files

`B` clips, `T` samples, `F` frames, `D` width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import aut
from aut.encoders import AudioEncoder


class SuiteEncoder(nn.Module):
    """An exported encoder as a torch module without parameters: suites train what comes after it, never it.

    It computes on `device` (default: a GPU where there is one); answers lie where the clips lay.
    """

    def __init__(self, encoder: str | Path | AudioEncoder, device: str | None = None) -> None:
        super().__init__()
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        opened = encoder if isinstance(encoder, AudioEncoder) else aut.load_encoder(encoder, where)
        self.encoder: AudioEncoder = opened
        self.sampling_rate, self.output_dim = opened.rate_hz, opened.width
        self.hop_size_in_ms = 1000.0 * opened.hop_s

    def frames(self, audio: Tensor, n_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """audio [B, T] or [T] in [-1, 1], n_B valid samples (default: all) -> h_BFD float32 and f_B valid frames."""
        x_BT = np.atleast_2d(audio.detach().cpu().numpy()).astype(np.float32)
        lengths = np.full(len(x_BT), x_BT.shape[1]) if n_B is None else n_B.cpu().numpy()
        h_BFD, f_B = self.encoder.encoder.encode(x_BT, lengths.astype(np.int64))
        return torch.from_numpy(h_BFD).to(audio.device), torch.from_numpy(f_B).to(audio.device)
