"""Mixture: the selection of clips by domain, as Parquet parts that stay put when the data change.

In    data/index/<domain>/<source>/part-*.parquet of every pool source, data/screen/blocklist.parquet
Out   data/mixture/<domain>/<source>/part-<range>.parquet, tombstones.parquet, mixture.json, stats.json; plot data
Why   A clip is taken when the keyed hash of its id is under its domain's threshold, and lies in the part that its
      source and the top of its hash name. A new source, a blocked clip or a change of `rows` moves the threshold: that
      touches the parts at the threshold and no other. Blocked clips stay in their part and are skipped.
      Price: a part's rows come from all over its source, so captions changed here and there touch all of its parts;
      and the index is read twice, once for ids and once for rows, to keep memory at one block of rows.
Run   aut mixture; python -m benchmarks.mixture --quick
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aut.config import Params
from aut.contracts import INDEX_SCHEMA, Tracker
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import digest_json, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.order import key64, mix64, part_name, pattern, slots_before
from aut.progress import Advance, progress
from aut.units import DOMAINS, Domain

if TYPE_CHECKING:
    import pyarrow as pa

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

BLOCK_ROWS = 1 << 20  # rows in memory at once; also where row groups end, so it is part of the bytes
LANE_ROWS = 1 << 16  # ids hashed at once: their words stay in the second-level cache
WORD = np.uint64(0x9FB21C651E98DF25)  # odd multiplier between words of an id
REPEATING = ["domain", "source", "text_origin", "label", "licence", "split"]  # few values: read as dictionaries
EDGES_S = [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0]  # of the duration histogram


def mixture(params: Params, layout: Layout, track: Tracker) -> dict[str, float | int | str]:
    """Selects, writes and counts an epoch's clips. ConfigError for a short domain, DataError for an id met twice."""
    with progress("mixture", None) as advance:
        blocked = _blocked_ids(layout.screen / "blocklist.parquet")
        blocked_keys = np.sort(row_keys(blocked, params.seed))
        pools = _pools(params, layout)
        plans, known = _plans(params, pools, blocked_keys, advance)
        with replacing(layout.mixture) as folder:
            written = [
                _write_source(folder, s, plan, params, blocked_keys, advance) for plan in plans for s in plan.pool
            ]
            digest = _describe(folder, params, plans, written)
            stats = _statistics(params, plans, written)
            write_json(folder / "stats.json", stats | {"digest": digest, "blocklist": _coverage(blocked_keys, known)})
    write_bytes(layout.plot("mixture"), _shares(stats))
    track.dataset("mixture", digest, params.mixture.rows, layout.mixture)
    unknown = len(blocked_keys) - known
    if unknown:
        track.tags({"mixture.warning": f"{unknown} blocked ids are in no pool source"})
    return _metrics(params, plans, stats, digest, unknown)


def row_keys(ids: pa.StringArray, seed: int) -> U64:
    """Keyed 64-bit hash of each id: words of 8 bytes folded by multiply and shift, finished by SplitMix64.

    Defined here because the hashes of polars and pandas may change between versions, and would move every row; blake2b
    of 24.5M Python strings takes a minute. Not cryptographic: ids are the user's own, none tries to collide. Keys are
    as uniform as the threshold and the ranges need (a test counts them), and an id met twice shows as an equal key.
    """
    import pyarrow as pa

    if pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.string())
    start = np.frombuffer(ids.buffers()[1] or b"\0" * 4, "<i4")[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = bytes(ids.buffers()[2] or b"")[int(start[0]) : int(start[-1])] + b"\0" * 8
    start -= start[0]
    words: U64 = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))  # the 8 bytes at any offset
    out = np.empty(len(ids), np.uint64)
    for lane in range(0, len(ids), LANE_ROWS):
        stop = min(lane + LANE_ROWS, len(ids))
        out[lane:stop] = _fold(words, start[lane:stop], start[lane + 1 : stop + 1], np.uint64(key64(seed, 0)))
    return out


def _fold(words: U64, start: I64, stop: I64, key: np.uint64) -> U64:
    left = stop - start
    h = key ^ mix64(left.astype(np.uint64))
    row = np.flatnonzero(left > 0)
    at, rest = start[row], left[row]
    while row.size:
        spare = (np.maximum(0, 8 - rest) * 8).astype(np.uint64)
        word = (words[at] << spare) >> spare
        folded = (h[row] ^ word) * WORD
        h[row] = folded ^ (folded >> np.uint64(29))
        more = rest > 8
        row, at, rest = row[more], at[more] + 8, rest[more] - 8
    return mix64(h)


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


@dataclass
class Written:
    """What was written of one source: rows and digest by range, tombstones, counts of live rows."""

    domain: Domain
    source: str
    rows: dict[int, int] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    tombstones: list[tuple[str, int, str]] = field(default_factory=list)
    clips: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, value), kind as in stats.json
    milliseconds: Counter[tuple[str, str]] = field(default_factory=Counter)  # whole numbers: any order, one sum


def _blocked_ids(path: Path) -> Any:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingInput(f"{path} is missing", "run `aut screen`")
    return pc.unique(_one(pq.read_table(path, columns=["id"])["id"]))


def _pools(params: Params, layout: Layout) -> dict[Domain, list[Pool]]:
    """Keys of every pool source, two index parts at a time."""
    found: dict[Domain, list[Pool]] = {}
    with ThreadPoolExecutor(_threads()) as threads:
        for domain in DOMAINS:
            for source in params.pool(domain) if params.mixture.quota.get(domain) else ():
                folder = layout.index(domain, source)
                parts = sorted(folder.glob("part-*.parquet"))
                if not parts:
                    raise MissingInput(f"{folder} holds no part-*.parquet", f"run `aut index {source}`")
                keys = list(threads.map(lambda p: _part_keys(p, params.seed), parts))
                found.setdefault(domain, []).append(Pool(source, parts, keys))
    return found


def _part_keys(path: Path, seed: int) -> U64:
    import pyarrow.parquet as pq

    blocks = pq.ParquetFile(path).iter_batches(BLOCK_ROWS, columns=["id"], use_threads=False)
    return np.concatenate([np.empty(0, np.uint64), *(row_keys(b.column(0), seed) for b in blocks)])


def _plans(params: Params, pools: dict[Domain, list[Pool]], blocked: U64, advance: Advance) -> tuple[list[Plan], int]:
    """A plan a domain, and how many blocked keys the pools hold."""
    names = list(pools)
    slots = pattern(quota_counts(params, names))
    plans: list[Plan] = []
    known, seen = 0, list[U64]()
    for number, domain in enumerate(names):
        keys = np.concatenate([k for pool in pools[domain] for k in pool.keys])
        keys.sort()
        _refuse_twice(keys, seen, [p for d in names for p in pools[d]])
        at = np.searchsorted(keys, blocked)
        here = at[(at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] == blocked)] if len(keys) else at[:0]
        known += len(here)
        need = slots_before(slots, params.mixture.rows, number)
        plans.append(_plan(domain, pools[domain], keys, here, need, params.mixture.short))
        seen.append(keys)
        advance(len(keys), f"ids of {domain}")
    return plans, known


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


def _refuse_twice(keys: U64, others: list[U64], pool: list[Pool]) -> None:
    """DataError naming an id that two rows claim, here or in other domains; all keys ascend."""
    import pyarrow.parquet as pq

    twice = np.concatenate([keys[1:][keys[1:] == keys[:-1]], *(keys[_among(keys, other)] for other in others)])
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


def _write_source(folder: Path, pool: Pool, plan: Plan, params: Params, blocked: U64, advance: Advance) -> Written:
    """Streams a source's taken rows into one file a hash range, in the order of the index."""
    out = Written(plan.domain, pool.source)
    if not plan.clips:
        return out
    place = folder / plan.domain / pool.source
    place.mkdir(parents=True)
    digests: dict[int, _RowDigest] = {}
    with ExitStack() as files, ThreadPoolExecutor(_threads()) as threads:
        writers: dict[int, Any] = {}
        for table, keys in _taken(pool, plan.threshold):
            ranges = _ranges(keys, params.mixture.parts)
            order = np.argsort(ranges, kind="stable")  # uint16 or uint32: a radix sort
            table = _take(table, order, threads)
            edges = np.searchsorted(ranges[order], np.arange(params.mixture.parts + 1))
            cuts: list[int] = edges.tolist()
            here = np.flatnonzero(np.diff(edges)).tolist()
            dead = _among(keys[order], blocked)
            _count(out, table, dead)
            _bury(out, table, dead, ranges[order], cuts)
            for r in here:
                if r not in writers:
                    writers[r] = files.enter_context(_writer(folder / part_name(plan.domain, pool.source, r)))
                    digests[r] = _RowDigest()
            list(threads.map(lambda r: _append(writers[r], digests[r], table, cuts[r], cuts[r + 1]), here))  # noqa: B023
            for r in here:
                out.rows[r] = out.rows.get(r, 0) + cuts[r + 1] - cuts[r]
            advance(len(keys), f"rows of {pool.source}")
    out.digests = {r: d.hexdigest() for r, d in sorted(digests.items())}
    return out


def _taken(pool: Pool, threshold: int) -> Iterator[tuple[pa.Table, U64]]:
    """Taken rows and their keys, a block of rows at a time."""
    import pyarrow as pa

    held: list[pa.Table] = []
    held_keys: list[U64] = []
    count = 0
    for path, keys in zip(pool.parts, pool.keys, strict=True):
        if not (keys <= threshold).any():
            continue
        at = 0
        reader = _reader(path)
        for batch in reader.iter_batches(BLOCK_ROWS // 4, columns=list(INDEX_SCHEMA)):
            mask = keys[at : at + len(batch)] <= threshold
            held_keys.append(keys[at : at + len(batch)][mask])
            held.append(_canonical(pa.table(batch), path).filter(mask))
            at, count = at + len(batch), count + int(mask.sum())
            if count >= BLOCK_ROWS:
                yield pa.concat_tables(held), np.concatenate(held_keys)
                held, held_keys, count = [], [], 0
    if count:
        yield pa.concat_tables(held), np.concatenate(held_keys)


def _reader(path: Path) -> Any:
    import pyarrow.parquet as pq

    missing = set(INDEX_SCHEMA) - set(pq.read_schema(path).names)
    if missing:
        raise DataError(f"{path} has no column {', '.join(sorted(missing))}", "run `aut index` again for its source")
    return pq.ParquetFile(path, read_dictionary=REPEATING, memory_map=True)


def schema() -> pa.Schema:
    """Columns of a part: the index's, those of few values as dictionaries."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "i64": pa.int64(), "i32": pa.int32(), "f64": pa.float64()}
    few = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(n, few if n in REPEATING else kinds[k]) for n, k in INDEX_SCHEMA.items()])


def _canonical(table: pa.Table, path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        return table.cast(schema())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"{path} does not have the columns of an index: {error}", "run `aut index` again") from None


def _take(table: pa.Table, order: I64, threads: ThreadPoolExecutor) -> pa.Table:
    """Rows in `order`, columns in parallel; one dictionary a column."""
    import pyarrow as pa

    table = table.unify_dictionaries()
    columns = list(threads.map(lambda c: _one(c).take(pa.array(order)), table.columns))
    return pa.table(columns, schema=table.schema)


def _one(column: Any) -> Any:
    """A chunked array as one array, also of no chunks."""
    import pyarrow as pa

    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _ranges(keys: U64, parts: int) -> NDArray[np.uint32]:
    """Hash range of each key: equal stretches of the key space, the same whatever the threshold."""
    return (((keys >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)).astype(np.uint32)


def _among(keys: U64, blocked: U64) -> NDArray[np.bool_]:
    """Which keys are in `blocked`, which ascends."""
    if not len(blocked):
        return np.zeros(len(keys), np.bool_)
    near = np.searchsorted(blocked, keys)
    found: NDArray[np.bool_] = blocked[np.minimum(near, len(blocked) - 1)] == keys
    return found


def _bury(out: Written, table: pa.Table, dead: NDArray[np.bool_], ranges: NDArray[np.uint32], cuts: list[int]) -> None:
    """Notes blocked rows by part, row and id."""
    rows = np.flatnonzero(dead)
    for row, clip in zip(rows.tolist(), table["id"].take(rows).to_pylist(), strict=True):
        r = int(ranges[row])
        at = row - cuts[r] + out.rows.get(r, 0)
        out.tombstones.append((part_name(out.domain, out.source, r), at, clip))


def _count(out: Written, table: pa.Table, dead: NDArray[np.bool_]) -> None:
    """Adds live rows and milliseconds by licence, text origin and duration."""
    live = ~dead
    ms = np.round(np.nan_to_num(_one(table["duration_s"]).to_numpy(zero_copy_only=False)) * 1000)[live]
    for kind in ("licence", "text_origin"):
        coded = _one(table[kind])
        codes = coded.indices.fill_null(-1).to_numpy()[live] + 1
        _tally(out, kind, ["unknown", *coded.dictionary.to_pylist()], codes, ms)
    labels = ["", *(f"to {e:g} s" for e in EDGES_S), f"over {EDGES_S[-1]:g} s"]
    _tally(out, "duration", labels, np.searchsorted(EDGES_S, ms / 1000) + 1, ms)
    _tally(out, "source", [out.source], np.zeros(len(ms), np.int64), ms)


def _tally(out: Written, kind: str, names: list[str], codes: NDArray[Any], ms: NDArray[Any]) -> None:
    clips = np.bincount(codes, minlength=len(names))
    lasted = np.bincount(codes, weights=ms, minlength=len(names))  # whole numbers below 2^53: exact in any order
    for i in np.flatnonzero(clips).tolist():
        out.clips[kind, names[i]] += int(clips[i])
        out.milliseconds[kind, names[i]] += int(lasted[i])


@contextmanager
def _writer(path: Path) -> Iterator[Any]:
    """A Parquet writer and its lock. zstd 1 writes as fast as the disk takes it; ids and texts repeat too little for
    dictionaries, and nobody filters by row-group statistics."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(
        path, schema(), compression="zstd", compression_level=1, use_dictionary=REPEATING, write_statistics=False,
        store_schema=True,
    ) as writer:  # fmt: skip
        yield writer, Lock()


def _append(writer: tuple[Any, Lock], digest: _RowDigest, table: pa.Table, start: int, stop: int) -> None:
    piece = table.slice(start, stop - start)
    with writer[1]:
        digest.update(piece)
        writer[0].write_table(piece)


class _RowDigest:
    """blake2b-128 of rows in their order, the same however they come in blocks: a column is two streams,
    one of lengths or validity, one of values."""

    def __init__(self) -> None:
        self._columns = {n: (hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)) for n in INDEX_SCHEMA}
        self._rows = 0

    def update(self, table: pa.Table) -> None:
        """Adds rows. A string counts as its length and bytes, null as length -1."""
        import pyarrow as pa

        for name, column in zip(table.column_names, table.columns, strict=True):
            values = _one(column)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            _feed(*self._columns[name], values)
        self._rows += table.num_rows

    def hexdigest(self) -> str:
        return digest_json([self._rows, {n: [h.hexdigest() for h in pair] for n, pair in self._columns.items()}])


def _feed(lengths: Any, data: Any, values: Any) -> None:
    import pyarrow as pa

    if not pa.types.is_string(values.type):
        lengths.update(values.is_valid().cast(pa.uint8()).to_numpy().tobytes())
        data.update(values.fill_null(0).to_numpy().tobytes())
        return
    start = np.frombuffer(values.buffers()[1], "<i4")[values.offset : values.offset + len(values) + 1]
    length = np.where(values.is_null().to_numpy(zero_copy_only=False), -1, np.diff(start)).astype("<i4")
    lengths.update(length.tobytes())
    if text := values.buffers()[2]:
        data.update(memoryview(text)[int(start[0]) : int(start[-1])])


def _describe(folder: Path, params: Params, plans: list[Plan], written: list[Written]) -> str:
    """Writes tombstones.parquet and mixture.json; returns the digest over all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dead = sorted(t for w in written for t in w.tombstones)
    names = pa.schema([("part", pa.string()), ("row", pa.int64()), ("id", pa.string())])
    columns = [list(c) for c in zip(*dead, strict=True)] or [[], [], []]
    pq.write_table(pa.table(columns, schema=names), folder / "tombstones.parquet", compression="zstd")
    parts: dict[str, dict[str, list[list[int]]]] = {}
    for w in written:
        if w.rows:
            parts.setdefault(w.domain, {})[w.source] = [[r, n] for r, n in sorted(w.rows.items())]
    domains = [p.domain for p in plans]
    about = {
        "rows": params.mixture.rows,
        "window": params.mixture.window,
        "domains": domains,
        "counts": quota_counts(params, domains),
        "parts": parts,
    }
    held = [[w.domain, w.source, r, d] for w in written for r, d in w.digests.items()]
    digest = digest_json([about, held, dead, params.seed])
    write_json(folder / "mixture.json", about | {"digest": digest, "seed": params.seed})
    return digest


def _statistics(params: Params, plans: list[Plan], written: list[Written]) -> dict[str, Any]:
    """Live clips and hours by domain, source, licence, text origin, duration; `share` is of an epoch's rows."""
    stats: dict[str, Any] = {"rows": params.mixture.rows, "domain": {}}
    for kind in ("source", "licence", "text_origin", "duration"):
        stats[kind] = {}
    for plan in plans:
        own = [w for w in written if w.domain == plan.domain]
        repeats = plan.slots / plan.clips if plan.clips else 0.0
        whole = {"clips": plan.clips, "rows": plan.slots, "repeats": round(repeats, 6)}
        ms = sum(w.milliseconds["source", w.source] for w in own)
        blocked = sum(len(w.tombstones) for w in own)
        share = round(plan.slots / params.mixture.rows, 9)
        stats["domain"][plan.domain] = whole | {"hours": ms / 3.6e6, "blocked": blocked, "share": share}
        for w in own:
            _merge(stats, w, repeats / params.mixture.rows)
    return stats


def _merge(stats: dict[str, Any], written: Written, weight: float) -> None:
    for (kind, name), clips in sorted(written.clips.items()):
        entry = stats[kind].setdefault(name, {"clips": 0, "hours": 0.0, "share": 0.0})
        entry["clips"] += clips
        entry["hours"] = round(entry["hours"] + written.milliseconds[kind, name] / 3.6e6, 6)
        entry["share"] = round(entry["share"] + clips * weight, 9)


def _coverage(blocked: U64, known: int) -> dict[str, int]:
    return {"ids": len(blocked), "in_pool": known, "unknown": len(blocked) - known}


def _shares(stats: Mapping[str, Any]) -> bytes:
    """CSV part,share: domains, then sources, licences, text origins, durations."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["part", "share"])
    for kind in ("domain", "source", "licence", "text_origin", "duration"):
        rows.writerows([f"{kind.replace('_', ' ')}: {name}", entry["share"]] for name, entry in stats[kind].items())
    return text.getvalue().encode()


def _metrics(
    params: Params, plans: list[Plan], stats: Mapping[str, Any], digest: str, unknown: int
) -> dict[str, float | int | str]:
    out: dict[str, float | int | str] = {"rows": params.mixture.rows, "digest": digest, "blocklist_unknown": unknown}
    for plan in plans:
        entry = stats["domain"][plan.domain]
        out |= {f"{plan.domain}_{name}": entry[name] for name in ("rows", "clips", "repeats", "hours", "blocked")}
    return out


def _threads() -> int:
    return os.cpu_count() or 1
