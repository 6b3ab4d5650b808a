"""Placement: numbers from the environment that say how a training is laid out; no result depends on them.

Why   a wrong one is said before anything loads, in the launcher's own process, and means the same wherever it is read.
"""

from __future__ import annotations

import math
import os

from aut.errors import ConfigError

COUNTS = ("AUT_PROCS", "AUT_HOSTS", "AUT_LOADERS", "AUT_THREADS")
MICRO = "AUT_MICRO_S"


def count(name: str) -> int | None:
    """A whole number from 1 on, None where the variable is not set or empty. ConfigError names it."""
    text = os.environ.get(name) or ""
    if text and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"{name}={text} is no positive whole number", "unset it, or give one")
    return int(text) if text else None


def micro_s() -> float | None:
    """AUT_MICRO_S, the padded seconds that a micro-batch may hold, None where it is not set. ConfigError names it."""
    text = os.environ.get(MICRO) or ""
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 0.0 < seconds < math.inf:  # nan is not, either
        raise ConfigError(f"{MICRO}={text} is no positive number of seconds", "unset it, or give one")
    return seconds


def check() -> None:
    """ConfigError where one of them is wrong."""
    for name in COUNTS:
        count(name)
    micro_s()
