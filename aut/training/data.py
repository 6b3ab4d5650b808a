"""Data path: the clips of an optimiser step, decoded ahead by threads, grouped by duration into micro-batches.

In    an order, the roots of the sources, a Plan
Out   for each step this process's micro-batches of waveforms and target ids; a count of replaced clips
Why   a step is the same clips whatever computes it: positions are arithmetic, an unreadable clip is replaced
      by the next of its domain, and grouping only reorders inside the step. Waveforms are kept as int16
      up to CACHE_BYTES, so that a small set is decoded once; a clip has the same 16 bits from disk or from the cache.
      Price: 16 bits, of which the augmented mel notices nothing.
Run   `for batch in Loader(...).steps(plan, first=0): ...`

AUT_LOADERS   decoding threads (default: as many as the torch threads, beside a GPU its part of the cores; decoding
              releases the interpreter's lock)

`B` clips, `T` samples, `L` target tokens.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aut.audio.decode import Unreadable, read_clip
from aut.errors import DataError
from aut.training.groups import divide, sized_s
from aut.training.plan import Plan
from aut.training.tokenizer import Targets
from aut.units import DOMAINS, RATE_HZ, WINDOW_S

if TYPE_CHECKING:
    from aut.training.kept import Kept
    from aut.training.sizes import Sizes

LOOK_AHEAD = 4  # steps decoded before they are needed, at least
CACHE_BYTES = 1_000_000_000
MAX_REPLACEMENTS = 100  # unreadable clips in a row before we give up
IGNORED = -100  # target that counts nowhere
REPLACED = "the next of its domain takes its place"


@dataclass(frozen=True)
class Example:
    """One clip as the model sees it. `position` is where it stands in the order, or stood before a replacement."""

    position: int
    id: str
    domain: int  # index into DOMAINS
    pcm_T: NDArray[np.int16]
    ids: list[int]

    @property
    def seconds(self) -> float:
        return len(self.pcm_T) / RATE_HZ


@dataclass(frozen=True)
class Micro:
    """Arrays of one micro-batch, padded on the right: samples with zeros, targets with IGNORED."""

    x_BT: NDArray[np.int16]
    n_B: NDArray[np.int64]
    ids_BL: NDArray[np.int64]
    targets_BL: NDArray[np.int64]
    domain_B: NDArray[np.int64]
    position_B: NDArray[np.int64]
    planned_s: float = 0.0  # by which `divide` chose its size, where it did
    most: int = 0  # clips of the process that was dealt most of this group

    @property
    def tokens(self) -> int:
        return int((self.targets_BL != IGNORED).sum())

    @property
    def seconds(self) -> float:
        """Of the longest clip."""
        return float(self.x_BT.shape[1] / RATE_HZ)

    @property
    def sized_s(self) -> float:
        """What its size was chosen by: a replacement, or an index, may give a clip of another length."""
        return self.planned_s or self.seconds

    @property
    def clips(self) -> int:
        """The same in every process that has a share of the group."""
        return self.most or len(self.n_B)

    def halves(self) -> list[Micro]:
        """The same clips in two micro-batches, each cut to its own longest. The second counts nothing where there is
        one clip here and another process has two."""
        half = len(self.n_B) // 2
        parts = [self._part(slice(None, half)), self._part(slice(half, None))] if half else [self, uncounted(self)]
        return [replace(part, most=-(-self.clips // 2)) for part in parts]

    def _part(self, rows: slice) -> Micro:
        longest = int(self.n_B[rows].max())
        tokens = int((self.targets_BL[rows] != IGNORED).sum(axis=1).max())
        ids_BL, targets_BL = self.ids_BL[rows, :tokens], self.targets_BL[rows, :tokens]
        n_B, domain_B, position_B = (a[rows] for a in (self.n_B, self.domain_B, self.position_B))
        return replace(
            self,
            x_BT=self.x_BT[rows, :longest],
            n_B=n_B,
            ids_BL=ids_BL,
            targets_BL=targets_BL,
            domain_B=domain_B,
            position_B=position_B,
        )


@dataclass(frozen=True)
class Batch:
    """This process's share of an optimiser step."""

    step: int
    micros: list[Micro]
    row_ids: list[str]  # of the whole share, in the order of the micro-batches
    replaced: int
    seconds: float = field(default=0.0)  # valid audio
    padded_s: float = field(default=0.0)  # what the micro-batches compute, padding included


def collate(examples: Sequence[Example]) -> Micro:
    """Examples side by side."""
    n_B = np.array([len(e.pcm_T) for e in examples], dtype=np.int64)
    x_BT = np.zeros((len(examples), int(n_B.max())), dtype=np.int16)
    longest = max(len(e.ids) for e in examples) - 1
    ids_BL = np.full((len(examples), longest), examples[0].ids[-1], dtype=np.int64)
    targets_BL = np.full((len(examples), longest), IGNORED, dtype=np.int64)
    for i, e in enumerate(examples):
        x_BT[i, : len(e.pcm_T)] = e.pcm_T
        ids_BL[i, : len(e.ids) - 1] = e.ids[:-1]
        targets_BL[i, : len(e.ids) - 1] = e.ids[1:]
    domain_B = np.array([e.domain for e in examples], dtype=np.int64)
    position_B = np.array([e.position for e in examples], dtype=np.int64)
    return Micro(x_BT, n_B, ids_BL, targets_BL, domain_B, position_B)


def uncounted(micro: Micro) -> Micro:
    """The same work without a target: for a process that has no clip of its own where the others have one.

    Where passes meet in collectives (under ZeRO-3 each gathers weights), one that took no part would stop the rest.
    """
    return replace(micro, targets_BL=np.full_like(micro.targets_BL, IGNORED))


class Loader:
    """Steps of an order, decoded ahead. One per process; `rank` of `world` takes its share of each step."""

    def __init__(
        self,
        order: Kept,
        roots: Mapping[str, Path],
        targets: Targets,
        max_s: float,
        sizes: Sizes,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        padded: bool = False,
    ) -> None:
        self._order, self._roots, self.targets = order, roots, targets
        self._max_s, self._sizes, self._rank, self._world = max_s, sizes, rank, world
        self._least_s = WINDOW_S if padded else 0.0  # a clip costs this on the device, which pads it
        self._cache = Cache(CACHE_BYTES)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
        self._ahead = max(LOOK_AHEAD, threads)  # a step is one thread's work
        self._said: set[str] = set()
        self._ordering = threading.Lock()  # an Order's caches belong to one thread at a time

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def steps(self, plan: Plan, first: int) -> Iterator[Batch]:
        """Batches of steps `first` to the plan's end."""
        waiting: deque[Future[Batch]] = deque()
        for step in range(first, plan.steps):
            waiting.append(self._pool.submit(self._batch, step, plan.positions(step)))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def batch(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """This process's share of rows that are given, not computed: for evaluation. Unreadable ones are left out,
        and what has no clip left counts nothing, for the others compute as many micro-batches."""
        micros, ids = [], []
        for group in divide([self._length_s(row) for row in rows], self._sizes, self._world):
            share = self.examples([rows[i] for i in group[self._rank :: self._world]])
            micros.append(collate(share) if share else uncounted(collate([self._nothing()])))
            ids += [e.id for e in share]
        return Batch(step, micros, ids, 0)

    def examples(self, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Rows that are given. Unreadable ones are left out."""
        fetched = self._pool.map(partial(self._try, otherwise="it is left out"), range(len(rows)), rows)
        return [e for e in fetched if e is not None]

    def _batch(self, step: int, positions: NDArray[np.int64]) -> Batch:
        with self._ordering:
            rows = self._order.rows(positions)
        lengths = [self._length_s(row) for row in rows]
        groups = divide(lengths, self._sizes, self._world)
        replaced = 0
        micros, ids, valid_s, padded_s = [], [], 0.0, 0.0
        for group in groups:
            examples = []
            for i in group[self._rank :: self._world]:
                example, tries = self._readable(int(positions[i]), rows[i])
                examples.append(example)
                replaced += tries
            most = -(-len(group) // self._world)
            planned_s = sized_s([lengths[i] for i in group[:: self._world]], self._sizes.packed)
            micro = replace(collate(examples), planned_s=planned_s, most=most)
            micros.append(micro)
            ids += [e.id for e in examples]
            own_s = float(micro.n_B.sum()) / RATE_HZ
            valid_s += own_s
            padded_s += own_s if self._sizes.packed else len(micro.n_B) * max(micro.seconds, self._least_s)
        return Batch(step, micros, ids, replaced, valid_s, padded_s)

    def _length_s(self, row: Mapping[str, Any]) -> float:
        """Of the clip on the device."""
        return max(self._least_s, min(float(row["duration_s"]), self._max_s))

    def _nothing(self) -> Example:
        return Example(0, "", 0, np.zeros(RATE_HZ // 10, np.int16), self.targets(""))

    def _row(self, position: int) -> dict[str, Any]:
        with self._ordering:
            return self._order.rows(np.array([position], dtype=np.int64))[0]

    def _readable(self, position: int, row: Mapping[str, Any]) -> tuple[Example, int]:
        """The clip, or the next of its domain where it cannot be decoded or its text not held; how many were passed."""
        at = position
        for tries in range(MAX_REPLACEMENTS):
            example = self._try(position, row)
            if example is not None:
                return example, tries
            at = self._order.next_in_domain(at)
            row = self._row(at)
        raise DataError(
            f"{MAX_REPLACEMENTS} clips in a row of {row['domain']} cannot be used, the last is {row['id']}",
            f"check {self._root(row)}, or run `aut index {row['source']}` again",
        )

    def _try(self, position: int, row: Mapping[str, Any], otherwise: str = REPLACED) -> Example | None:
        try:
            ids = self.targets(row["text"] or "")
            pcm_T = self._cache(str(row["id"]), lambda: self._decode(row))
        except (Unreadable, OSError) as error:
            if row["id"] not in self._said:
                self._said.add(str(row["id"]))
                print(f"{row['id']}: {error}: {otherwise}", file=sys.stderr)  # noqa: T201
            return None
        return Example(position, str(row["id"]), DOMAINS.index(row["domain"]), pcm_T, ids)

    def _decode(self, row: Mapping[str, Any]) -> NDArray[np.int16]:
        x_T = read_clip(self._root(row), row, max_s=self._max_s)
        if not x_T.size:
            raise Unreadable("zero_length", "no samples")
        return np.round(np.clip(x_T, -1.0, 1.0) * 32767.0).astype(np.int16)

    def _root(self, row: Mapping[str, Any]) -> Path:
        try:
            return self._roots[row["source"]]
        except KeyError:
            raise DataError(
                f"{row['id']}: params name no source '{row['source']}'", "run `aut mixture` again"
            ) from None


class Cache:
    """Waveforms by id, first come first kept, up to a number of bytes; threads share it."""

    def __init__(self, limit_b: int) -> None:
        self._limit_b, self._held_b = limit_b, 0
        self._kept: dict[str, NDArray[np.int16]] = {}
        self._lock = threading.Lock()

    def __call__(self, key: str, make: Callable[[], NDArray[np.int16]]) -> NDArray[np.int16]:
        found = self._kept.get(key)
        if found is not None:
            return found
        made = make()
        with self._lock:
            if key not in self._kept and self._held_b + made.nbytes <= self._limit_b:
                self._kept[key] = made
                self._held_b += made.nbytes
        return made
