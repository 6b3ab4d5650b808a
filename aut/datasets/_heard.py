"""Heard: what decoding gave of each clip, kept from run to run, so that only new and changed files are decoded.

In    blocks of Clips as they are listed, the corpus' root
Out   AUT_WORK/index/<source>-<key>/blocks/<digest>.parquet: the rows of a block (_rows.py), each with its `sound`
Why   a sound is named by what decides it, other than the decoder, which is in the folder's key: file, place in the
      file, the file's size and time of change (a tar's for its members). A block is named by its Clips, their sounds
      and what makes rows of them, so it stands for this listing only, whatever a killed run had listed. Where one is
      new, its clips are looked up in the others: by 8 bytes of their sounds, 12 bytes of memory a clip (40 while they
      are sorted), then in the file, whose neighbours are mostly the next to be asked for. Only sounds that became rows
      are kept: what could not be used is read again.
      Price: a look at size and time of every file in each run, the disk space of the index and its fingerprints once
      more, many small reads where a listing is shuffled. Other audio of the same size that bears the very same time of
      change, to the nanosecond, is taken for the old one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from aut.audio.decode import MP3_SLACK
from aut.contracts import Clip
from aut.files import digest_bytes

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

STALE_S = 30 * 86_400.0  # blocks that no run has used for so long are removed


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip, in the columns of its row. `within_s` is a limit on lengths that it was found to keep."""

    duration_s: float
    sample_rate_hz: int
    content_hash: str
    fingerprint: bytes
    within_s: float

    def keeps(self, max_s: float) -> bool:
        """Whether it is surely no longer. The limit holds for what a header says, an MP3's says a little too much."""
        return self.within_s <= max_s or self.duration_s + MP3_SLACK / self.sample_rate_hz <= max_s


COLUMNS = [field.name for field in fields(Heard)]


class Blocks:
    """The blocks of one source, and what is known from them."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._root = folder, root
        self._table: tuple[list[Path], NDArray[np.uint64], NDArray[np.uint32]] | None = None
        self._heard_in = lru_cache(8)(_heard_in)
        self._state = lru_cache(1024)(_state)  # clips of one tar or one recording follow each other

    def sounds(self, clips: Iterable[Clip]) -> list[bytes | None]:
        """16 bytes a clip, None where its file is not there."""
        return [_sound(clip, self._state(f"{self._root}/{clip.uri}")) for clip in clips]

    def path(self, clips: Sequence[Clip], sounds: Sequence[bytes | None], rules: str) -> Path:
        """Where the block of these clips lies, or will. `rules`: a digest of what else decides its rows."""
        listed = (repr(pair).encode("utf-8", "backslashreplace") for pair in zip(clips, sounds, strict=True))
        return self._folder / f"{digest_bytes(rules.encode(), *listed)}.parquet"

    def is_done(self, path: Path) -> bool:
        """Whether nothing of the block is to be read. A clip in the quarantine is: it may have been mended since."""
        return path.exists() and not _sounds_in(path).null_count()

    def recall(self, sounds: Iterable[bytes | None]) -> dict[bytes, Heard]:
        """What is known of these, from blocks that lay there when this was first asked."""
        import numpy as np

        self._table = self._table or _table(sorted(self._folder.glob("*.parquet")))
        files, known, numbers = self._table
        asked = [s for s in sounds if s is not None]
        if not asked or not len(known):
            return {}
        wanted = np.frombuffer(b"".join(s[:8] for s in asked), "<u8")
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found: dict[bytes, Heard] = {}
        for number in np.unique(numbers[at[known[at] == wanted]]):
            found |= self._heard_in(files[number])
        return {s: found[s] for s in asked if s in found}

    def keep(self, used: Sequence[Path]) -> None:
        """Removes blocks that are stale, or whose clips that became rows are all in `used`, and a killed run's drafts.

        Others stay: a profile that reads a part of the corpus must not make another forget the rest.
        """
        import numpy as np

        for path in (self._folder, *used):
            os.utime(path)
        for draft in self._folder.glob(".*"):
            draft.unlink()
        if others := {*self._folder.glob("*.parquet")} - {*used}:
            held = np.sort(np.concatenate([_ids_in(path) for path in used]))
            for path in others:
                if _all_in(_ids_in(path), held) or time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _sound(clip: Clip, state: tuple[int, int] | None) -> bytes | None:
    if state is None:
        return None
    facts = repr((clip.uri, clip.offset_b, clip.size_b, clip.start_s, clip.length_s, state))
    return blake2b(facts.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _table(files: list[Path]) -> tuple[list[Path], NDArray[np.uint64], NDArray[np.uint32]]:
    """(files, the beginnings of their sounds, sorted, the number of the file that each one lies in)."""
    import numpy as np

    begins = [_beginnings(path) for path in files]
    numbers = np.repeat(np.arange(len(files), dtype=np.uint32), [len(b) for b in begins])
    known = np.concatenate(begins) if begins else np.zeros(0, np.uint64)
    order = np.argsort(known)
    return files, known[order], numbers[order]


def _sounds_in(path: Path) -> pl.Series:
    import polars as pl

    return pl.read_parquet(path, columns=["sound"]).get_column("sound")


def _beginnings(path: Path) -> NDArray[np.uint64]:
    import numpy as np

    return np.frombuffer(b"".join(s[:8] for s in _sounds_in(path).drop_nulls()), "<u8").astype(np.uint64)


def _ids_in(path: Path) -> NDArray[np.uint64]:
    """Hashes of the ids that could be used."""
    import polars as pl

    rows = pl.read_parquet(path, columns=["id", "sound"]).drop_nulls("sound")
    return rows.get_column("id").hash(seed=0).to_numpy()


def _all_in(some: NDArray[np.uint64], those: NDArray[np.uint64]) -> bool:
    """Whether each of `some` is one of `those`, which ascend."""
    import numpy as np

    at = np.searchsorted(those, some)
    return bool((at < len(those)).all() and (those[at] == some).all())


def _heard_in(path: Path) -> dict[bytes, Heard]:
    import polars as pl

    rows = pl.read_parquet(path, columns=["sound", *COLUMNS]).drop_nulls("sound")
    return {sound: Heard(*values) for sound, *values in rows.select("sound", *COLUMNS).iter_rows()}
