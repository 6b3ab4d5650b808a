"""Plan: how many clips each domain gives, and the largest key that is taken.

In    ids (and licences, where some are left out) of the index parts of every pool source, the blocked keys, the section
      `mixture` of the params
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
from numpy.typing import NDArray

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
    """A source's index parts, its keys part after part, and by licence the keys of those that are left out for it."""

    source: str
    parts: list[Path]
    keys: list[U64]
    barred: dict[str, U64]


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
    licences = params.mixture.licences_excluded
    read = threads.map(lambda p: _part_keys(p, params.seed, licences), [p for *_, parts in wanted for p in parts])
    found: dict[Domain, list[Pool]] = {}
    for domain, source, parts in wanted:
        own = list(islice(read, len(parts)))
        barred = {licence: np.concatenate([of[licence] for _, of in own]) for licence in licences}
        found.setdefault(domain, []).append(Pool(source, parts, [keys for keys, _ in own], barred))
    return found


def _part_keys(path: Path, seed: int, licences: Sequence[str]) -> tuple[U64, dict[str, U64]]:
    """(keys of all rows, those of each licence's rows). The column is read only where a licence is left out."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = ["id", *(["licence"] if licences else ())]
    refuse_lacking(path, file.schema_arrow.names, columns)
    none = np.empty(0, np.uint64)
    keys, barred = [none], {licence: [none] for licence in licences}
    for block in file.iter_batches(READ_ROWS, columns=columns, use_threads=False):
        keys.append(row_keys(block["id"], seed))
        for licence in licences:
            here = pc.equal(block["licence"], licence).fill_null(False)
            barred[licence].append(keys[-1][here.to_numpy(zero_copy_only=False)])
    return np.concatenate(keys), {licence: np.concatenate(found) for licence, found in barred.items()}


def refuse_lacking(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    """DataError where an index part, whose columns are `names`, has not all that are wanted."""
    if missing := sorted(set(wanted).difference(names)):
        raise DataError(f"{path} has no column {', '.join(missing)}", "run `aut index` again for its source")


def plans(
    params: Params,
    pool: dict[Domain, list[Pool]],
    blocked: U64,
    causes: Sequence[U64],
    threads: Executor,
    advance: Advance,
) -> tuple[list[Plan], list[int]]:
    """A plan a domain, and how many keys of each cause the pools hold. `blocked` and those of a cause ascend.

    ConfigError for a domain that is too short or gets no row, DataError for an id that two rows claim.
    """
    names = list(pool)
    slots = pattern(quota_counts(params, names))
    _refuse_rowless(params, names, slots)
    found: list[Plan] = []
    known, seen = [0] * len(causes), list[U64]()
    for number, domain in enumerate(names):
        keys = _sorted([k for source in pool[domain] for k in source.keys], threads)
        _refuse_twice(keys, seen, [p for d in names for p in pool[d]])
        at = np.searchsorted(keys, blocked)
        here = at[(at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] == blocked)] if len(keys) else at[:0]
        known = [k + int(among(cause, keys).sum()) for k, cause in zip(known, causes, strict=True)]
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


def _refuse_rowless(params: Params, names: list[Domain], slots: NDArray[np.int8]) -> None:
    """ConfigError where a quota above 0 comes to no row: no order could be opened over such a mixture."""
    rows, first = params.mixture.rows, [int(np.argmax(slots == number)) for number in range(len(names))]
    for domain, slot in zip(names, first, strict=True):
        if slot >= rows:
            raise ConfigError(
                f"mixture.rows = {rows} gives {domain} no row", f"give {max(first) + 1} or more, or quota.{domain} = 0"
            )


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
