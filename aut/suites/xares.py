"""X-ARES (github.com/jimbozhang/xares; J. Zhang et al., arXiv 2505.16369): attributes, and forward(audio) -> [B, F, D].

Run   from aut.suites.xares import AutEncoder; then give `AutEncoder("models/encoders/adapted-0")` to the suite's tasks

The suite pads the clips of a batch and passes no lengths, so padding is heard as silence.
"""

from __future__ import annotations

from torch import Tensor

from aut.suites import SuiteEncoder


class AutEncoder(SuiteEncoder):
    """The suite asks for a name that ends in 'Encoder', `sampling_rate`, `output_dim` and `hop_size_in_ms`."""

    def forward(self, audio: Tensor) -> Tensor:
        """audio [B, T] or [T] -> [B, F, D]."""
        return self.frames(audio)[0]
