"""Model: Whisper with its captioning loss as one module, at native length or padded.

In    int16 waveforms and target ids of a micro-batch (aut/training/data.py)
Out   summed token losses, by domain too; checkpoints in transformers' format
Why   log-mel is computed inside the step, on the device, so that the loader moves waveforms (a tenth of the bytes of
      float features would not matter, but a CPU core that computes them would). One module, so that data parallel
      and ZeRO wrap the whole forward pass.
      Price: none seen; features at native length cost less than moving padded ones.

`B` clips, `T` samples, `M` mel bins, `F` frames, `L` target tokens, `D` width, `V` vocabulary, `G` domains.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from aut.audio.mel import log_mel
from aut.config import ModelShape, Training
from aut.encoders.whisper import decoder_forward, encoder_forward
from aut.errors import DataError, MissingInput
from aut.training.augment import Augment
from aut.training.data import IGNORED, Micro
from aut.training.memory import sent
from aut.training.tokenizer import EOT, NO_TIMESTAMPS, SOT, TRANSCRIBE
from aut.units import DECODER_TOKENS, DOMAINS

TIED = "proj_out.weight"  # to the decoder's embed_tokens: no file need hold it


@dataclass(frozen=True)
class Sums:
    """Sums over the target tokens of a micro-batch. `loss` carries the gradient."""

    loss: Tensor
    counts_2G: Tensor  # loss, without label smoothing, and tokens, by domain


class Captioner(nn.Module):
    """`whisper` is transformers' WhisperForConditionalGeneration; only its modules are used, not its forward."""

    def __init__(self, whisper: Any, training: Training, augment: Augment) -> None:
        super().__init__()
        self.whisper = whisper
        self._settings, self._augment = training, augment

    def forward(self, micro: Micro, device: torch.device) -> Sums:
        """Sums of cross-entropy over every target token: prompt, text and end."""
        x_BT = sent(torch.from_numpy(micro.x_BT), device).float() / 32767.0
        y_BLD = self._states(x_BT, torch.from_numpy(micro.n_B), sent(torch.from_numpy(micro.ids_BL), device), micro)
        # Counted targets are found on the host, where it costs no wait for the device.
        counted_N = np.flatnonzero(micro.targets_BL != IGNORED)
        targets_N, domain_N, at_N = (
            sent(torch.from_numpy(values), device)
            for values in (
                micro.targets_BL.flat[counted_N],
                micro.domain_B[counted_N // micro.targets_BL.shape[1]],
                counted_N,
            )
        )
        logits_NV = self.whisper.proj_out(y_BLD.flatten(0, 1).index_select(0, at_N)).float()
        plain_N = cross_entropy(logits_NV, targets_N, reduction="none")
        smoothing = self._settings.label_smoothing if self.training else 0.0
        loss = plain_N.sum()
        if smoothing:
            loss = cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=smoothing)
        zeros_G = torch.zeros(len(DOMAINS), device=device, dtype=torch.float64)
        loss_G = zeros_G.index_add(0, domain_N, plain_N.detach().double())
        tokens_G = zeros_G.index_add(0, domain_N, torch.ones_like(plain_N, dtype=torch.float64))
        return Sums(loss, torch.stack([loss_G, tokens_G]))

    def _states(self, x_BT: Tensor, n_B: Tensor, ids_BL: Tensor, micro: Micro) -> Tensor:
        model, padded = self.whisper.model, self._settings.length == "padded"
        if self.training:
            x_BT = self._augment.gain(x_BT, micro.position_B)
        mel_BMF, _ = log_mel(x_BT, n_B, model.config.num_mel_bins, padded)
        if self.training:
            mel_BMF = self._augment.masks(mel_BMF, n_B, micro.position_B)
        how: dict[str, Any] = {
            "checkpointing": self._settings.activation_checkpointing,
            "compiled": self._settings.compile,
        }
        frames_B = None if padded else (n_B + 159) // 160  # on the host, where counting costs no wait
        h_BFD, f_B = encoder_forward(model.encoder, mel_BMF, frames_B, **how)
        return decoder_forward(model.decoder, ids_BL, h_BFD, None if padded else f_B, **how)


def new_whisper(shape: ModelShape, folder: Path, language: str, seed: int) -> Any:
    """An untrained Whisper of `shape` for the tokenizer in `folder`; weights from `seed`, sinusoidal positions."""
    from tokenizers import Tokenizer
    from transformers.models.whisper.configuration_whisper import WhisperConfig

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end, start = tokenizer.token_to_id(EOT), tokenizer.token_to_id(SOT)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_mel_bins=shape.mels,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.d_model,
        decoder_ffn_dim=4 * shape.d_model,
        max_target_positions=DECODER_TOKENS,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    whisper = random_whisper(config, seed)
    generation = whisper.generation_config
    generation.update(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        max_length=DECODER_TOKENS,
    )
    generation.is_multilingual = True
    generation.lang_to_id = {f"<|{language}|>": tokenizer.token_to_id(f"<|{language}|>")}
    generation.task_to_id = {"transcribe": tokenizer.token_to_id(TRANSCRIBE)}
    generation.no_timestamps_token_id = tokenizer.token_to_id(NO_TIMESTAMPS)
    generation.language, generation.task = language, "transcribe"
    return whisper


def random_whisper(config: Any, seed: int) -> Any:
    """A Whisper of `config` with transformers' own initialisation, from `seed`."""
    from transformers.models.whisper.modeling_whisper import WhisperForConditionalGeneration

    torch.manual_seed(seed)
    return WhisperForConditionalGeneration(config)


def open_whisper(folder: Path) -> Any:
    """The model in a checkpoint folder, float32. MissingInput where there are no weights, DataError where not all."""
    if not any(folder.glob("*.safetensors")):
        raise MissingInput(f"{folder} holds no model.safetensors", "run `aut base base`, or name a folder with weights")
    return load_whisper(folder, "run `aut base base` again", local_files_only=True)


def load_whisper(name: str | Path, remedy: str, **how: Any) -> Any:
    """A Whisper of the hub or a folder, float32, safetensors only: loading a pickle would run its code.

    DataError, with `remedy`, where a file is cut short or a tensor is missing or of another shape: transformers would
    draw it at random.
    """
    from safetensors import SafetensorError
    from transformers.models.whisper.modeling_whisper import WhisperForConditionalGeneration

    how |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with quiet():
            whisper, told = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, **how)
    except SafetensorError as error:
        raise DataError(f"{_unreadable(name)} is cut short or no safetensors ({error})", remedy) from None
    missing, others = set(told["missing_keys"]) - {TIED}, {str(key[0]) for key in told["mismatched_keys"]}
    for keys, wrong in ((missing - others, "missing"), (others, "of another shape than config.json says")):
        if keys:
            first = f"{min(keys)} and {len(keys) - 1} more tensors are" if len(keys) > 1 else f"{min(keys)} is"
            raise DataError(f"the weights in {name} are no whole Whisper: {first} {wrong}", remedy)
    return whisper


def refuse_not_finite(whisper: Any, name: str, remedy: str) -> None:
    """DataError that names the first tensor with a NaN or an infinity."""
    for key, value in whisper.state_dict().items():
        if not torch.isfinite(value).all():
            raise DataError(f"the weights in {name} are not finite: {key}", remedy)


def _unreadable(name: str | Path) -> str:
    """The first file of a folder that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(name).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return str(path)
    return f"a file of {name}"


def save_whisper(whisper: Any, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors, as `save_pretrained` leaves them.

    That function imports DeepSpeed where it is installed: seconds of a stage that may take few.
    """
    from safetensors.torch import save_file

    whisper.config.architectures = ["WhisperForConditionalGeneration"]
    whisper.config.dtype = torch.float32
    whisper.config.save_pretrained(folder)
    whisper.generation_config.save_pretrained(folder)
    weights = {k: v.detach().cpu().contiguous() for k, v in whisper.state_dict().items() if k != TIED}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class quiet:  # noqa: N801 - reads as a statement
    """Keeps transformers' progress bars off stderr: a small model loads in no time, a large one has ours."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was and sys.stderr.isatty():
            logging.enable_progress_bar()
