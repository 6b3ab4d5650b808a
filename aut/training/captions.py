"""Captions: what the model under training says to a few held-out clips, beside what it should say.

In    an Engine, a Loader, the rows held out for evaluation
Out   a table row a clip and evaluation: step, id, domain, target, output
Why   a loss of 0.6 tells nobody that music is called rain. The same clips each time, the first of each domain, so that
      a column reads as the course of a training. Price: greedy decoding of six clips an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from aut.training.data import Loader
from aut.training.engine import Engine
from aut.training.greedy import greedy
from aut.units import DOMAINS

COLUMNS = ("step", "id", "domain", "target", "output")
A_DOMAIN = 2  # clips
FULL_SCALE = np.float32(32767.0)


class Samples:
    """A few held-out clips, decoded once."""

    def __init__(self, held_out: Sequence[Mapping[str, Any]], loader: Loader) -> None:
        self._examples = loader.examples(chosen(held_out))
        self._targets = loader.targets

    def rows(self, engine: Engine, step: int) -> list[list[Any]]:
        """One row a clip; none on processes that have nothing to report. The model is in the caller's mode."""
        if not self._examples or (engine.rank and not engine.apart):
            return []
        clips = [e.pcm_T.astype(np.float32) / FULL_SCALE for e in self._examples]
        with torch.autocast(engine.device.type, dtype=torch.bfloat16, enabled=engine.bf16):
            said = greedy(engine.captioner.whisper, clips, self._targets, engine.padded, str(engine.device))
        return [
            [step, e.id, DOMAINS[e.domain], self._targets.text(e.ids), self._targets.text(ids)]
            for e, ids in zip(self._examples, said, strict=True)
        ]


def chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first rows of each domain, in the order of DOMAINS."""
    return [row for domain in DOMAINS for row in [r for r in rows if r["domain"] == domain][:A_DOMAIN]]
