"""What a check of `aut doctor` tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `note` (works, but you may want to know) or `wrong`, with the remedy."""

    what: str
    state: str
    detail: str
    remedy: str = ""
