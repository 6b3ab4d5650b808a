"""Order: which clip stands at a position, computed and never stored.

In    data/mixture/ (mixture.json, tombstones.parquet, parts), or parts of an index and a blocklist
Out   `Order.rows(positions)`, `.seconds`, `.locate`; a position counts on over epochs
Why   position -> domain is a periodic pattern, so every window of consecutive positions has its quotas exactly;
      occurrence -> clip is a keyed permutation of the domain's hash ranges, then one of the rows in a range. A range is
      a uniform sample of all the domain's sources, so reading range after range mixes as a shuffle does, while each
      part is read once a pass. No state: any process, any batch size, any restart give the same rows.
      Price: rows of one hash range always stay near each other, in a new order each pass.
Run   python -m benchmarks.order --quick

A pass is one traversal of a domain's clips. Passes meet epochs where `rows` is a multiple of `window` and the domain is
not repeated; otherwise a pass ends inside an epoch, and the next one begins there.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.contracts import INDEX_SCHEMA
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import digest_bytes, digest_file, digest_json, read_json
from aut.units import DOMAINS, Domain

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
ROUNDS = 4  # Luby and Rackoff 1988: four rounds of a random function make a strong pseudorandom permutation
CACHE_ROWS = 1 << 18  # full rows kept in memory, unless the ranges in use are larger


def mix64(x: U64) -> U64:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words that spreads every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key64(*words: int) -> int:
    """One 64-bit key from a seed and counters. Python integers: the same on every platform."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix64(state ^ np.uint64((word * GOLDEN + GOLDEN) & MASK))
    return int(state[0])


def permute(i_N: I64, size: int, key: int) -> I64:
    """Keyed permutation of range(size) at `i_N`: a Feistel network over 2k bits, walked until it lands below `size`.

    Cycle walking (Black and Rogaway 2002) takes fewer than 4 steps on average, since 4^k < 4 size.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out_N = _feistel(i_N.astype(np.uint64), half, key)
    outside = np.flatnonzero(out_N >= size)
    while outside.size:
        walked = _feistel(out_N[outside], half, key)
        out_N[outside] = walked
        outside = outside[walked >= size]
    return out_N.astype(np.int64)


def _feistel(x_N: U64, half: int, key: int) -> U64:
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = x_N >> shift, x_N & low
    for turn in range(ROUNDS):
        left, right = right, left ^ (mix64(right ^ np.uint64(key64(key, turn))) & low)
    return (left << shift) | right


def pattern(counts: Sequence[int]) -> NDArray[np.int8]:
    """`sum(counts)` slots in which number d stands counts[d] times, spread evenly: the largest lag takes each slot."""
    window = sum(counts)
    slots, given = np.empty(window, np.int8), [0] * len(counts)
    for slot in range(window):
        lag = [count * (slot + 1) - window * g for count, g in zip(counts, given, strict=True)]
        slots[slot] = chosen = lag.index(max(lag))
        given[chosen] += 1
    return slots


def slots_before(slots: NDArray[np.int8], rows: int, number: int) -> int:
    """How often `number` stands in the first `rows` positions of the repeated pattern."""
    whole, rest = divmod(rows, len(slots))
    return whole * int((slots == number).sum()) + int((slots[:rest] == number).sum())


@dataclass(frozen=True)
class Part:
    """A Parquet file of clips; `skip` are its blocked rows, ascending."""

    path: Path
    rows: int
    skip: I64

    @property
    def live(self) -> int:
        return self.rows - len(self.skip)


@dataclass(frozen=True)
class Shelf:
    """One domain's parts, by hash range: ranges[r] are the same range of each source."""

    domain: Domain
    ranges: tuple[tuple[Part, ...], ...]

    @cached_property
    def sizes(self) -> I64:
        return np.array([sum(p.live for p in r) for r in self.ranges], np.int64)

    @cached_property
    def rows(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class Locators:
    """Where positions' clips lie: N numbers of domains, of hash ranges and of live rows in the range."""

    domain_N: NDArray[np.int8]
    range_N: I64
    row_N: I64


class Order:
    """Clips by position. Safe to pickle to loader workers before use; each process keeps its own small cache."""

    def __init__(self, shelves: Sequence[Shelf], slots: NDArray[np.int8], length: int, seed: int, digest: str) -> None:
        self.shelves, self.slots, self.length, self.seed, self.digest = tuple(shelves), slots, length, seed, digest
        counted = slots[None, :] == np.arange(len(self.shelves))[:, None]
        self._count = counted.sum(1)
        self._before = counted.cumsum(1) - counted  # occurrences of a domain ahead of a slot
        self._tables: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._seconds: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._walks: OrderedDict[tuple[int, int], tuple[I64, I64]] = OrderedDict()
        self._limit = max(CACHE_ROWS, 2 * sum(int(s.sizes.max(initial=0)) for s in self.shelves))

    @classmethod
    def of_mixture(cls, folder: Path, seed: int, domains: Sequence[Domain] | None = None) -> Order:
        """The order over a mixture, or over some domains of it: then only their slots of the pattern remain.

        MissingInput without a mixture, ConfigError where it has no clip of a domain.
        """
        about = read_json(folder / "mixture.json")
        names: list[Domain] = about["domains"]
        keep = [d for d in names if d in (domains or names)]
        if missing := set(domains or ()) - set(names):
            raise ConfigError(f"{folder} has no rows of {', '.join(sorted(missing))}", "give mixture.quota a share")
        slots = pattern(about["counts"])
        length = sum(slots_before(slots, about["rows"], names.index(d)) for d in keep)
        skipped = _tombstones(folder / "tombstones.parquet")
        shelves = [_shelf(folder, d, about["parts"][d], skipped) for d in keep]
        kept = np.array([keep.index(names[s]) for s in slots if names[s] in keep], np.int8)
        return cls(shelves, kept, length, seed, digest_json([about["digest"], keep]))

    @classmethod
    def of_index(
        cls,
        parts: Sequence[Path],
        blocklist: Path | None,
        seed: int,
        ids: Sequence[str] = (),
        licences: Sequence[str] = (),
    ) -> Order:
        """The order over index parts, as one domain and one range held in memory, less a blocklist's ids, others that
        are to be left out, and clips under some licences.

        For pools of some 100,000 clips; larger ones go through a mixture. DataError where nothing is left.
        """
        import pyarrow.parquet as pq

        blocked = {*ids, *(pq.read_table(blocklist, columns=["id"])["id"].to_pylist() if blocklist else ())}
        found = []
        for path in parts:
            if not path.exists():
                raise MissingInput(f"{path} is missing", "run `aut index` for its source")
            rows = pq.read_table(path, columns=["id", "licence"] if licences else ["id"]).to_pylist()
            dead = [row["id"] in blocked or row.get("licence") in licences for row in rows]
            found.append(Part(path, len(dead), np.flatnonzero(dead)))
        shelf = Shelf(_domain_of(parts), (tuple(found),))
        if not shelf.rows:
            raise DataError(
                f"no clip left in {len(parts)} parts, {len(blocked)} ids blocked", "add a source, or see the screen"
            )
        digest = digest_json([[digest_file(p.path), digest_bytes(p.skip.tobytes())] for p in found])
        return cls([shelf], np.zeros(1, np.int8), shelf.rows, seed, digest)

    def locate(self, positions: I64) -> Locators:
        """Locators of N positions: arithmetic, no file is read."""
        q_N = np.asarray(positions, np.int64)
        turn_N, slot_N = np.divmod(q_N, len(self.slots))
        out = Locators(self.slots[slot_N], np.empty(len(q_N), np.int64), np.empty(len(q_N), np.int64))
        for number, shelf in enumerate(self.shelves):
            at = np.flatnonzero(out.domain_N == number)
            seen = turn_N[at] * self._count[number] + self._before[number, slot_N[at]]
            for lap, within in _groups(seen // shelf.rows):
                self._walk(number, lap, at[within], seen[within] % shelf.rows, out)
        return out

    def _walk(self, number: int, lap: int, at: I64, index: I64, out: Locators) -> None:
        """Fills `out[at]` for indices of one pass over one domain."""
        ranges, ends = self._ranges(number, lap)
        stop = np.searchsorted(ends, index, side="right")
        for k, within in _groups(stop):
            r = int(ranges[k])
            size = int(self.shelves[number].sizes[r])
            start = int(ends[k]) - size
            key = key64(self.seed, _number(self.shelves[number].domain), lap, r, 1)
            out.range_N[at[within]] = r
            out.row_N[at[within]] = permute(index[within] - start, size, key)

    def _ranges(self, number: int, lap: int) -> tuple[I64, I64]:
        """Ranges in the order of a pass, and where each ends; the last few passes are remembered."""
        if (number, lap) not in self._walks:
            shelf = self.shelves[number]
            key = key64(self.seed, _number(shelf.domain), lap)
            order = permute(np.arange(len(shelf.ranges)), len(shelf.ranges), key)
            self._walks[number, lap] = order, np.cumsum(shelf.sizes[order])
            while len(self._walks) > 64:
                self._walks.popitem(last=False)
        return self._walks[number, lap]

    def rows(self, positions: I64) -> list[dict[str, Any]]:
        """Index columns of the clips at N positions, in their order."""
        found = self.locate(positions)
        out: list[dict[str, Any]] = [{}] * len(found.row_N)
        for number, r, at in self._spots(found):
            table = self._table(number, r).take(found.row_N[at])
            names = table.column_names
            for i, values in zip(at.tolist(), zip(*map(_values, table.columns), strict=True), strict=True):
                out[i] = dict(zip(names, values, strict=True))
        return out

    def seconds(self, positions: I64) -> NDArray[np.float64]:
        """Durations of the clips at N positions; reads one column, kept as 8 bytes a clip."""
        found = self.locate(positions)
        out = np.empty(len(found.row_N))
        for number, r, at in self._spots(found):
            if (number, r) not in self._seconds:
                self._seconds[number, r] = self._read(number, r, ["duration_s"])["duration_s"].to_numpy()
            out[at] = self._seconds[number, r][found.row_N[at]]
        return out

    def next_in_domain(self, position: int) -> int:
        """The next position of the same domain: where to look when a clip cannot be read."""
        window = len(self.slots)
        turn, slot = divmod(position, window)
        same = np.flatnonzero(self.slots == self.slots[slot]).tolist()
        k = bisect.bisect_right(same, slot)
        return turn * window + int(same[k]) if k < len(same) else (turn + 1) * window + int(same[0])

    def _spots(self, found: Locators) -> list[tuple[int, int, I64]]:
        spots = found.domain_N.astype(np.int64) << 32 | found.range_N
        return [(s >> 32, s & 0xFFFFFFFF, at) for s, at in _groups(spots)]

    def _table(self, number: int, r: int) -> Any:
        """Live rows of a range, least recently used ones dropped."""
        if (number, r) not in self._tables:
            self._tables[number, r] = self._read(number, r, list(INDEX_SCHEMA)).combine_chunks()
            while sum(map(len, self._tables.values())) > self._limit and len(self._tables) > 1:
                self._tables.popitem(last=False)
        self._tables.move_to_end((number, r))
        return self._tables[number, r]

    def _read(self, number: int, r: int, columns: list[str]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for part in self.shelves[number].ranges[r]:
            table = pq.ParquetFile(part.path, memory_map=True).read(columns=columns)
            if table.num_rows != part.rows:
                raise DataError(
                    f"{part.path} has {table.num_rows} rows, not {part.rows}", "restore it, or `aut mixture`"
                )
            if len(part.skip):
                table = table.filter(np.isin(np.arange(part.rows), part.skip, invert=True, assume_unique=True))
            tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": OrderedDict(), "_seconds": {}, "_walks": OrderedDict()}


def _groups(values: NDArray[Any]) -> list[tuple[int, I64]]:
    """Each value with the indices that hold it, both ascending."""
    if not len(values):
        return []
    if (first := values[0]) == values[-1] and (values == first).all():
        return [(int(first), np.arange(len(values)))]
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    cuts = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
    return [(int(values[g[0]]), g) for g in np.split(order, cuts)]


def _values(column: Any) -> list[Any]:
    """What `to_pylist` gives, through numpy objects where that is exact: some five times faster."""
    import pyarrow as pa

    if column.null_count == len(column):
        return [None] * len(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_fixed_size_binary(column.type):  # a content hash: the mixture keeps its bytes
        return [None if v is None else v.hex() for v in column.to_pylist()]
    if pa.types.is_integer(column.type) and column.null_count:
        whole: list[Any] = column.to_pylist()  # numpy would make them floats
        return whole
    values: list[Any] = column.to_numpy().tolist()
    return values


def _number(domain: Domain) -> int:
    return DOMAINS.index(domain)


def _shelf(folder: Path, domain: Domain, parts: dict[str, list[list[int]]], skipped: dict[str, I64]) -> Shelf:
    """`parts`: source -> [[range, rows], ...] as mixture.json lists them."""
    ranges: dict[int, list[Part]] = {}
    none = np.empty(0, np.int64)
    for source in sorted(parts):
        for r, rows in parts[source]:
            name = part_name(domain, source, r)
            path = Path(f"{folder}/{name}")  # joining two thousand paths with `/` is a third of a restore
            ranges.setdefault(r, []).append(Part(path, rows, skipped.get(name, none)))
    return Shelf(domain, tuple(tuple(ranges[r]) for r in sorted(ranges)))


def part_name(domain: str, source: str, r: int) -> str:
    """Path of a part below the mixture's folder."""
    return f"{domain}/{source}/part-{r:05d}.parquet"


def _tombstones(path: Path) -> dict[str, I64]:
    """Part name -> its blocked rows, ascending."""
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingInput(f"{path} is missing", "run `aut mixture`")
    table = pq.ParquetFile(path, read_dictionary=["part"]).read(columns=["part", "row"]).unify_dictionaries()
    names = table["part"].combine_chunks()
    row_N, words = table["row"].to_numpy(), names.dictionary.to_pylist()
    return {words[i]: np.sort(row_N[at]) for i, at in _groups(names.indices.to_numpy())}


def _domain_of(parts: Sequence[Path]) -> Domain:
    """The domain an index part lies under; speech where the path does not say."""
    names = {d for p in parts for d in DOMAINS if d in p.parts}
    return names.pop() if len(names) == 1 else "speech"
