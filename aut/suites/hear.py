"""HEAR 2021's common API (J. Turian et al., arXiv 2203.03022; hearbenchmark.com/hear-api): a module of three functions.

Run   heareval's runner with the module name `aut.suites.hear` and an encoder folder or an address as its model
Why   a frame of Whisper's encoder is centred where its second mel frame is, so its time is its number times the hop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aut.suites import SuiteEncoder


class Model(SuiteEncoder):
    """The API asks for `sample_rate` and both embedding sizes."""

    def __init__(self, encoder: str) -> None:
        super().__init__(encoder)
        self.sample_rate = self.sampling_rate
        self.scene_embedding_size = self.timestamp_embedding_size = self.output_dim


def load_model(model_file_path: str = "models:/whisper-aut@champion") -> Model:
    """An encoder folder that `aut export` wrote, or an address; the registry's champion where none is given."""
    return Model(model_file_path)


def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """audio [B, T] in [-1, 1] -> embeddings [B, F, D] float32 and the frames' centres [B, F] in milliseconds."""
    h_BFD, _ = model.frames(audio)
    times_F = torch.arange(h_BFD.shape[1], device=audio.device, dtype=torch.float32) * model.hop_size_in_ms
    return h_BFD, times_F.expand(len(h_BFD), -1)


def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """audio [B, T] -> one vector a clip [B, D], the mean over its frames, as our own probes use it."""
    vectors = model.encoder.encoder.pooled(list(audio.detach().cpu().numpy()), ["valid"])["valid"]
    return torch.from_numpy(vectors).to(audio.device)
