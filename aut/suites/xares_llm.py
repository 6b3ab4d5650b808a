"""XARES-LLM (github.com/xiaomi-research/xares-llm): forward(audio, audio_attention_mask) -> frames and their mask.

Run   from aut.suites.xares_llm import AutEncoder; then name the class to the suite, with the encoder's folder

The suite marks valid samples; its language model attends to no frame that we mark 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aut.suites import SuiteEncoder


class AutEncoder(SuiteEncoder):
    """The suite asks for `output_dim` only."""

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """audio [B, T], mask [B, T] of ones and zeros on the right -> [B, F, D] and mask [B, F] int64."""
        n_B = None if audio_attention_mask is None else audio_attention_mask.sum(-1)
        h_BFD, f_B = self.frames(audio, n_B)
        mask_BF = torch.arange(h_BFD.shape[1], device=audio.device)[None] < f_B[:, None]
        return h_BFD, mask_BF.long()
