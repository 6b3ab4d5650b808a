"""Plan: how many clips each domain gives, and the largest key that is taken.

In    ids of the index parts of every pool source, the blocked keys, the section `mixture` of the params
Out   one Plan a domain
Why   all keys of a domain are sorted once: the threshold, ids met twice and blocked ids nobody has follow from that.
Price 8 bytes a clip of the pool, 8 more while it plans
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from aut.config import Params
from aut.errors import ConfigError, DataError, MissingInput
from aut.layout import Layout
from aut.mixing.keys import I64, U64, among, row_keys
from aut.order import pattern, slots_before
from aut.progress import Advance
from aut.units import DOMAINS, Domain

READ_ROWS = 1 << 20  # ids read at once
SORT_BITS = 1  # keys are sorted in 2^SORT_BITS stretches at once


@dataclass(frozen=True)
class Pool:
    """A source's index parts, and its keys part after part."""

    source: str
    parts: list[Path]
    keys: list[U64]


@dataclass(frozen=True)
class Plan:
    """One domain: rows wanted of an epoch, live clips that fill them, and the largest key taken."""

    domain: Domain
    slots: int
    clips: int
    threshold: int
    pool: list[Pool]


def pools(params: Params, layout: Layout, threads: Executor) -> dict[Domain, list[Pool]]:
    """Keys of every pool source of the domains that have a quota. MissingInput for a source without parts."""
    wanted: list[tuple[Domain, str, list[Path]]] = []
    for domain in DOMAINS:
        for source in params.pool(domain) if params.mixture.quota.get(domain) else ():
            folder = layout.index(domain, source)
            parts = sorted(folder.glob("part-*.parquet"))
            if not parts:
                raise MissingInput(f"{folder} holds no part-*.parquet", f"run `aut index {source}`")
            wanted.append((domain, source, parts))
    keys = threads.map(lambda p: _part_keys(p, params.seed), [p for *_, parts in wanted for p in parts])
    found: dict[Domain, list[Pool]] = {}
    for domain, source, parts in wanted:
        found.setdefault(domain, []).append(Pool(source, parts, list(islice(keys, len(parts)))))
    return found


def _part_keys(path: Path, seed: int) -> U64:
    import pyarrow.parquet as pq

    blocks = pq.ParquetFile(path).iter_batches(READ_ROWS, columns=["id"], use_threads=False)
    return np.concatenate([np.empty(0, np.uint64), *(row_keys(b.column(0), seed) for b in blocks)])


def plans(
    params: Params, pool: dict[Domain, list[Pool]], blocked: U64, threads: Executor, advance: Advance
) -> tuple[list[Plan], int]:
    """A plan a domain, and how many of the `blocked` keys, which ascend, the pools hold.

    ConfigError for a domain that is too short, DataError for an id that two rows claim.
    """
    names = list(pool)
    slots = pattern(quota_counts(params, names))
    found: list[Plan] = []
    known, seen = 0, list[U64]()
    for number, domain in enumerate(names):
        keys = _sorted([k for source in pool[domain] for k in source.keys], threads)
        _refuse_twice(keys, seen, [p for d in names for p in pool[d]])
        at = np.searchsorted(keys, blocked)
        here = at[(at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] == blocked)] if len(keys) else at[:0]
        known += len(here)
        need = slots_before(slots, params.mixture.rows, number)
        found.append(_plan(domain, pool[domain], keys, here, need, params.mixture.short))
        seen.append(keys)
        advance(len(keys), f"ids of {domain}")
    return found, known


def _sorted(parts: Sequence[U64], threads: Executor) -> U64:
    """All keys, ascending: keys are uniform, so each stretch of the key space is a like share of the work."""

    def stretch(number: int) -> U64:
        keys = np.concatenate([k[(k >> np.uint64(64 - SORT_BITS)) == number] for k in parts])
        keys.sort()
        return keys

    return np.concatenate(list(threads.map(stretch, range(1 << SORT_BITS))))


def _plan(domain: Domain, pool: list[Pool], keys: U64, blocked_at: I64, need: int, short: str) -> Plan:
    """The threshold that leaves `need` live keys under it; `keys` ascend, `blocked_at` are indices of blocked ones."""
    have = len(keys) - len(blocked_at)
    if have < need and (short == "error" or not have):
        raise ConfigError(
            f"mixture: {domain} has {have} clips, {need} needed ({len(blocked_at)} of {len(keys)} are blocked)",
            f"add {domain} sources, lower mixture.rows or quota.{domain}"
            + (", or set mixture.short to repeat" if have else ""),
        )
    clips = min(have, need)
    if not clips:
        return Plan(domain, need, 0, 0, pool)
    last = clips - 1 + int(np.searchsorted(blocked_at - np.arange(len(blocked_at)), clips - 1, side="right"))
    return Plan(domain, need, clips, int(keys[last]), pool)


def quota_counts(params: Params, names: list[Domain]) -> list[int]:
    """Rows of each domain in one window."""
    return [round(params.mixture.quota[d] * params.mixture.window) for d in names]


def _refuse_twice(keys: U64, others: Sequence[U64], pool: list[Pool]) -> None:
    """DataError naming an id that two rows claim, here or in other domains; all keys ascend."""
    import pyarrow.parquet as pq

    twice = np.concatenate([keys[1:][keys[1:] == keys[:-1]], *(keys[among(keys, other)] for other in others)])
    claims: dict[str, str] = {}
    for source in pool if len(twice) else ():
        for path, part in zip(source.parts, source.keys, strict=True):
            rows = np.flatnonzero(np.isin(part, twice))
            for clip in pq.read_table(path, columns=["id"])["id"].take(rows).to_pylist() if len(rows) else ():
                if clip in claims:
                    raise DataError(
                        f"id {clip} is in source {claims[clip]} and again in {source.source} ({path.name})",
                        "an id names one clip: give one of the sources other keys, or remove the row",
                    )
                claims[clip] = source.source
    if len(twice):
        raise DataError("two ids share a 64-bit key", "set another seed")
