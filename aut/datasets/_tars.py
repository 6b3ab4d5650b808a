"""Tars: the headers of a shard, one at a time, in constant memory, and word of a shard that ends before its end mark.

Why   `tarfile` takes a header that is cut or garbled, other than the first, for the end of the archive: what lies
      beyond would be lost in silence. A whole tar ends with zeros; where anything else stops the walk, that is told.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

BROKEN = (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError)
"""What `tarfile` raises for headers that are cut, garbled or absurd."""


class Damaged(Exception):
    """The walk stops before the archive's end; `detail` names the byte."""

    def __init__(self, name: str, offset_b: int, why: str) -> None:
        self.detail = f"{name} {why} at byte {offset_b:,}: what follows is lost"
        super().__init__(self.detail)


def members(path: Path, name: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """(the open tar, header) in the tar's order. Raises Damaged, which calls the tar `name`."""
    at = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                at = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # TarFile keeps every header it has seen
                yield tar, member
            at = tar.offset
    except BROKEN as error:
        why = "ends early" if at >= path.stat().st_size else f"is damaged ({type(error).__name__})"
        raise Damaged(name, min(at, path.stat().st_size), why) from None
    with path.open("rb") as f:
        f.seek(at)
        block = f.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise Damaged(name, at + len(block), "ends without its end mark")
    if block.strip(b"\0"):
        raise Damaged(name, at, "has no valid header")
