"""Hub: any Hugging Face audio encoder as a baseline (Whisper, wav2vec 2.0, HuBERT, WavLM, AST, CLAP ...).

In    a folder saved by transformers: config.json, model.safetensors, preprocessor_config.json
Out   the last hidden states as frames; patches of a spectrogram (AST, CLAP) count as frames too
Why   the peer runs as its authors ship it: own extractor, own window, own rate. Clips share a batch only when
      equally long, because some of these normalise over the padding. Price: slow, and transformers is imported.
      Nothing is run but transformers' own classes, and only safetensors are read.
Run   `fetch("facebook/hubert-base-ls960", None, folder)`, then export and open the folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aut.encoders.clipwise import ClipEncoder
from aut.errors import DataError, MissingInput

LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
WAVE_MIN_S = 0.05  # shorter clips are extended with silence: wav2vec's convolutions need 25 ms
WINDOWED = ("whisper", "audio-spectrogram-transformer", "clap")  # their extractors pad every clip to one window


def fetch(model: str, revision: str | None, folder: Path) -> None:
    """Saves a model and its feature extractor by hub name or folder. MissingInput where there is none."""
    from transformers import AutoFeatureExtractor, AutoModel

    try:
        extractor = AutoFeatureExtractor.from_pretrained(model, revision=revision, trust_remote_code=False)
        network = AutoModel.from_pretrained(model, revision=revision, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())
        raise MissingInput(f"no audio encoder '{model}': {what}", "give a name in reach, or a folder") from None
    network.save_pretrained(folder, max_shard_size="100GB")
    extractor.save_pretrained(folder)


class Hub(ClipEncoder):
    """A transformers audio model. 'valid' is the mean over audio where the model keeps time (Whisper, waves)."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], device: str) -> None:
        from transformers import AutoFeatureExtractor, AutoModel

        super().__init__(folder, facts, device)
        try:
            self.extractor = AutoFeatureExtractor.from_pretrained(folder, **LOCAL)
            model = AutoModel.from_pretrained(folder, use_safetensors=True, **LOCAL)
        except (OSError, ValueError) as error:
            what = " ".join(str(error).split())
            raise DataError(f"{folder} holds no model that transformers can open: {what}", "fetch it again") from None
        self.type = str(model.config.model_type)
        self.tower = _audio_tower(model).float().eval().requires_grad_(False).to(device)
        self.rate_hz = int(self.extractor.sampling_rate)
        self.window_s = self._window_s()
        self.min_samples = 1 if self.type in WINDOWED else round(WAVE_MIN_S * self.rate_hz)
        self.width, self.hop_s = self._measure()

    @torch.inference_mode()
    def frames(self, x_BT: Tensor, n_B: Tensor, padded: bool, layers: bool) -> tuple[list[Tensor], Tensor]:
        if padded and self.type not in WINDOWED:
            longest = round(self.window_s * self.rate_hz)
            x_BT = torch.nn.functional.pad(x_BT, (0, longest - x_BT.shape[1]))
            n_B = torch.full_like(n_B, longest)
        lengths = sorted(set(n_B.tolist()))
        found = [self._equal(x_BT[n_B == n][:, :n], layers) for n in lengths]
        counts = {n: states[0].shape[1] for n, states in zip(lengths, found, strict=True)}
        longest = max(counts.values())
        merged = []
        for i in range(len(found[0])):
            first = found[0][i]
            h_BFD = first.new_zeros(len(x_BT), longest, first.shape[2])
            for n, states in zip(counts, found, strict=True):
                h_BFD[n_B == n, : counts[n]] = states[i]
            merged.append(h_BFD)
        f_B = torch.tensor([counts[n] for n in n_B.tolist()])
        if self.type == "whisper" and not padded:
            f_B = torch.minimum(f_B, -(-n_B // round(self.hop_s * self.rate_hz)))
            merged = [
                h.masked_fill((torch.arange(longest) >= f_B[:, None])[:, :, None].to(h.device), 0) for h in merged
            ]
        return merged, f_B

    def _equal(self, x_BT: Tensor, layers: bool) -> list[Tensor]:
        """Clips of one length, as the model's own extractor prepares them -> frames of each layer."""
        inputs = self.extractor(list(x_BT.cpu().numpy()), sampling_rate=self.rate_hz, return_tensors="pt")
        inputs.pop("attention_mask", None)  # clips are equally long
        out = self.tower(**{k: v.to(self.device) for k, v in inputs.items()}, output_hidden_states=layers)
        states = [*(out.hidden_states[:-1] if layers else ()), out.last_hidden_state]  # the last one is normalised
        states = [h if h.dim() == 3 else h.flatten(2).transpose(1, 2) for h in states]
        return [_frames(h, states[-1].shape[1]) for h in states]

    def _window_s(self) -> float:
        if self.type == "audio-spectrogram-transformer":
            return float(self.extractor.max_length) / 100.0  # frames of 10 ms
        if self.type == "clap":
            return float(self.extractor.nb_max_samples) / self.rate_hz
        return 30.0

    def _measure(self) -> tuple[int, float]:
        """Width and time between frames, from one second of silence."""
        x_T = torch.full((1, self.rate_hz), 1e-4)
        h_BFD = self._equal(x_T.to(self.device), layers=False)[0]
        if self.type in WINDOWED:
            return h_BFD.shape[2], self.window_s / h_BFD.shape[1]
        strides: int = 1
        for stride in getattr(self.tower.config, "conv_stride", (320,)):
            strides *= int(stride)
        return h_BFD.shape[2], strides / self.rate_hz


load = Hub


def _frames(h_BFD: Tensor, count: int) -> Tensor:
    """CLAP's early layers have more patches than its last: averaged to as many, which keeps their mean."""
    if h_BFD.shape[1] == count:
        return h_BFD
    return torch.nn.functional.adaptive_avg_pool1d(h_BFD.transpose(1, 2), count).transpose(1, 2)


def _audio_tower(model: Any) -> Any:
    """The part of a model that hears: an encoder without its decoder, CLAP without its text side."""
    if hasattr(model, "audio_model"):
        return model.audio_model
    return model.get_encoder() if model.config.is_encoder_decoder else model
