"""Parts: the taken rows of each source, one Parquet file a hash range.

In    index parts and their keys, thresholds (aut/mixing/plan.py), the blocked keys
Out   <domain>/<source>/part-<range>.parquet in the order of the index; what was written of each source
Why   stretches of the index are read, cut by range and written by as many threads as there are cores: while one block
      is written the next is being read, also over the end of a source, so that no core waits. Arrow, zstd and SHA-256
      let go of the interpreter; processes would have to hand all rows over.
      Row groups end where BLOCK_ROWS of the *index* end, so a threshold that moves leaves the others' bytes alone.
Price memory of three blocks, some 250 bytes a row, and what Arrow keeps for the next: 1.5 GB at 20M rows
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.contracts import INDEX_SCHEMA
from aut.errors import DataError
from aut.mixing.digest import RowDigest, Stream, streams
from aut.mixing.keys import U64, Blocked, ranges
from aut.mixing.plan import Plan, Pool, refuse_lacking
from aut.mixing.tally import Tally
from aut.order import part_name
from aut.progress import Advance
from aut.units import Domain

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 1 << 20  # of the index, between two row groups of a part: so it is part of the bytes
STRETCH_ROWS = 1 << 18  # read and cut in one go, where the index' row groups allow it: copied rows are still in a cache
TASKS = 8  # a thread and block: small enough to keep all threads busy to the end
REPEATING = ["domain", "source", "text_origin", "label", "licence", "split"]  # few values: read as dictionaries
WRITE_ROWS = 1 << 12  # encoded at once: about a range's share of a block
HASH_BYTES = 16  # of content_hash: kept as bytes, since hex digits take long to compress to the same


@dataclass(frozen=True)
class Stretch:
    """Row groups of an index part, the keys of their rows, and whose they are."""

    plan: Plan
    pool: Pool
    path: Path
    groups: list[int]
    keys: U64


@dataclass(frozen=True)
class Cut:
    """Taken rows by hash range: range r is rows[edges[r]:edges[r + 1]], of which dead[graves[r]:graves[r + 1]], row and
    id, are blocked."""

    rows: pa.RecordBatch
    edges: list[int]
    dead: list[tuple[int, str]]
    graves: list[int]
    streams: list[Stream]
    tally: Tally


@dataclass
class Written:
    """What was written of one source: rows and digest by range, tombstones, counts of live rows."""

    domain: Domain
    source: str
    rows: dict[int, int] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    tombstones: list[tuple[str, int, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def write_parts(
    folder: Path, plans: Sequence[Plan], parts: int, blocked: Blocked, threads: int, advance: Advance
) -> list[Written]:
    """Writes every taken row below `folder`; the same bytes for any number of threads."""
    sources = {(p.domain, s.source): _Source(folder, Written(p.domain, s.source)) for p in plans for s in p.pool}
    queue = ThreadPoolExecutor(threads)
    try:
        shares = [range(a, b) for a, b in pairwise(np.linspace(0, parts, TASKS * threads + 1).astype(int).tolist())]
        writer = _Writer(queue, sources, [s for s in shares if s], advance)
        ahead: _Read | None = None
        for block, last in _blocks(plans):
            reading = _Read(block, last, [queue.submit(_cut, s, parts, blocked) for s in block])
            if ahead:
                writer.write(ahead)
            ahead = reading
        if ahead:
            writer.write(ahead)
        writer.wait()
    finally:
        queue.shutdown(cancel_futures=True)
        for source in sources.values():
            source.close(range(parts))
    return [source.written for source in sources.values()]


@dataclass(frozen=True)
class _Read:
    """A block of one source on its way, and whether it is the source's last."""

    stretches: list[Stretch]
    last: bool
    cuts: list[Future[Cut]]


@dataclass
class _Writer:
    """Hands blocks to the queue, each after its predecessor is written: both append to the same files."""

    queue: ThreadPoolExecutor
    sources: dict[tuple[Domain, str], _Source]
    shares: list[range]
    advance: Advance
    writing: list[Future[None]] = field(default_factory=list)

    def write(self, block: _Read) -> None:
        """Waits for the block to be read and for the one before it to be written, then submits it."""
        cuts = [cut for cut in (future.result() for future in block.cuts) if len(cut.rows)]
        block.cuts.clear()  # or the rows would be held until the block after the next
        self.wait()
        source = self.sources[block.stretches[0].plan.domain, block.stretches[0].pool.source]
        for cut in cuts:
            source.written.tally.add(cut.tally)
        self.advance(sum(len(c.rows) for c in cuts), f"rows of {source.written.source}")
        batches = _one_dictionary([c.rows for c in cuts])
        self.writing = [self.queue.submit(source.write, batches, cuts, share, block.last) for share in self.shares]

    def wait(self) -> None:
        for future in self.writing:
            future.result()


def _blocks(plans: Sequence[Plan]) -> Iterator[tuple[list[Stretch], bool]]:
    """Stretches of one source, BLOCK_ROWS of them or more, and whether they are its last."""
    for plan in plans:
        for pool in plan.pool if plan.clips else ():
            held: list[Stretch] = []
            for stretch in _stretches(plan, pool):
                if sum(len(s.keys) for s in held) >= BLOCK_ROWS:
                    yield held, False
                    held = []
                held.append(stretch)
            yield held, True


def _stretches(plan: Plan, pool: Pool) -> Iterator[Stretch]:
    for path, keys in zip(pool.parts, pool.keys, strict=True):
        groups, at, rows = list[int](), 0, 0
        sizes = _group_rows(path)
        for group, size in enumerate(sizes):
            groups, rows = [*groups, group], rows + size
            if rows >= STRETCH_ROWS or group == len(sizes) - 1:
                yield Stretch(plan, pool, path, groups, keys[at : at + rows])
                groups, at, rows = [], at + rows, 0


def _group_rows(path: Path) -> list[int]:
    """Rows of each row group, once the columns are known to be there."""
    import pyarrow.parquet as pq

    about = pq.read_metadata(path)
    refuse_lacking(path, [about.schema.column(i).name for i in range(about.num_columns)], list(INDEX_SCHEMA))
    return [about.row_group(g).num_rows for g in range(about.num_row_groups)]


def _cut(stretch: Stretch, parts: int, blocked: Blocked) -> Cut:
    """Reads a stretch and brings its taken rows into the order of their ranges."""
    import pyarrow as pa

    range_N = ranges(stretch.keys, parts)
    range_N[stretch.keys > np.uint64(stretch.plan.threshold)] = parts
    edges = np.concatenate([[0], np.cumsum(np.bincount(range_N, minlength=parts + 1)[:parts])])
    narrow = range_N.astype(np.uint16) if parts < 1 << 16 else range_N  # numpy sorts 16 bits by radix
    taken = np.argsort(narrow, kind="stable")[: edges[-1]]
    dead = blocked.rows(stretch.keys[taken])
    rows = _canonical(_read(stretch), stretch.path).take(pa.array(taken))
    tally = Tally.of(stretch.pool.source, rows, dead)
    graves = np.searchsorted(dead, edges).tolist()
    names = zip(dead.tolist(), rows["id"].take(pa.array(dead)).to_pylist(), strict=True)
    return Cut(rows, edges.tolist(), list(names), graves, streams(rows, edges), tally)


def _read(stretch: Stretch) -> pa.RecordBatch:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stretch.path, read_dictionary=REPEATING, memory_map=True, pre_buffer=False)
    table = file.read_row_groups(stretch.groups, columns=list(INDEX_SCHEMA), use_threads=False)
    return table.unify_dictionaries().combine_chunks().to_batches()[0]


@cache
def schema() -> pa.Schema:
    """Columns of a part: the index's, those of few values as dictionaries, the content hash as bytes."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "i64": pa.int64(), "i32": pa.int32(), "f64": pa.float64()}
    special = dict.fromkeys(REPEATING, pa.dictionary(pa.int32(), pa.string())) | {"content_hash": pa.binary(HASH_BYTES)}
    return pa.schema([(name, special.get(name, kinds[kind])) for name, kind in INDEX_SCHEMA.items()])


def _canonical(rows: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    import pyarrow as pa

    try:
        at = rows.schema.get_field_index("content_hash")
        rows = rows.set_column(at, "content_hash", _hash_bytes(rows.column(at)))
        return rows.cast(schema())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"{path} does not have the columns of an index: {error}", "run `aut index` again") from None


def _hash_bytes(column: pa.StringArray) -> pa.Array:
    """Hex digits as bytes. ValueError for other texts."""
    import pyarrow as pa

    if column.null_count:
        return pa.array([None if v is None else bytes.fromhex(v) for v in column.to_pylist()], pa.binary(HASH_BYTES))
    column = column.cast(pa.string())
    start = np.frombuffer(column.buffers()[1] or b"\0" * 4, "<i4")[column.offset : column.offset + len(column) + 1]
    if np.any(np.diff(start) != 2 * HASH_BYTES):
        raise ValueError(f"a content_hash is not of {2 * HASH_BYTES} hex digits")
    digits = bytes(memoryview(column.buffers()[2] or b"")[int(start[0]) : int(start[-1])])
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HASH_BYTES), len(column), [None, pa.py_buffer(bytes.fromhex(digits.decode()))]
    )


def _one_dictionary(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The same batches, whose columns share a dictionary, as those of a row group must; none of them is empty."""
    import pyarrow as pa

    shared: list[pa.RecordBatch] = pa.Table.from_batches(batches, schema()).unify_dictionaries().to_batches()
    return shared


class _Source:
    """The open parts of one source. Each range is written by one thread at a time, and keeps to its own entries."""

    def __init__(self, folder: Path, written: Written) -> None:
        self.folder, self.written = folder, written
        self._open: dict[int, _Part] = {}

    @cached_property
    def _place(self) -> Path:
        place = self.folder / self.written.domain / self.written.source
        place.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, batches: list[pa.RecordBatch], cuts: list[Cut], share: range, last: bool) -> None:
        """Appends one row group to each part of a share of the ranges; closes them after the last."""
        for r in share:
            here = [(b, c) for b, c in zip(batches, cuts, strict=True) if c.edges[r + 1] > c.edges[r]]
            if here:
                self._bury(r, here)
                self._append(r, here)
        if last:
            self.close(share)

    def close(self, share: range) -> None:
        for r in share:
            if part := self._open.pop(r, None):
                self.written.digests[r] = part.close()

    def _append(self, r: int, here: list[tuple[pa.RecordBatch, Cut]]) -> None:
        """The pieces stay apart: to make one table of them first would copy every row once more."""
        import pyarrow as pa

        if r not in self._open:
            self._open[r] = _Part.create(self._place / Path(part_name("", "", r)).name)
        pieces = [batch.slice(c.edges[r], c.edges[r + 1] - c.edges[r]) for batch, c in here]
        self._open[r].digest.update([cut.streams for _, cut in here], r)
        table = pa.Table.from_batches(pieces)
        self._open[r].writer.write_table(table)
        self.written.rows[r] = self.written.rows.get(r, 0) + len(table)

    def _bury(self, r: int, here: list[tuple[pa.RecordBatch, Cut]]) -> None:
        """Notes blocked rows by part, row and id."""
        first = self.written.rows.get(r, 0)
        name = part_name(self.written.domain, self.written.source, r)
        for _, cut in here:
            for row, clip in cut.dead[cut.graves[r] : cut.graves[r + 1]]:
                self.written.tombstones.append((name, first + row - cut.edges[r], clip))
            first += cut.edges[r + 1] - cut.edges[r]


@dataclass(frozen=True)
class _Part:
    file: Any
    writer: Any
    digest: RowDigest

    @classmethod
    def create(cls, path: Path) -> _Part:
        """Snappy: zstd was half of what writing takes. Ids and texts repeat too little for dictionaries, few-valued
        columns are small already, and nobody filters by row-group statistics. Pages of version 2 and larger batches
        take a seventh less. An open file, because pyarrow looks up the file system of a path each time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, plain = pa.OSFile(str(path), "wb"), ["content_hash", *REPEATING]
        writer = pq.ParquetWriter(
            file, schema(), compression={n: "none" if n in plain else "snappy" for n in INDEX_SCHEMA},
            use_dictionary=REPEATING, write_statistics=False, data_page_version="2.0", write_batch_size=WRITE_ROWS,
        )  # fmt: skip
        return cls(file, writer, RowDigest())

    def close(self) -> str:
        """The digest of the rows."""
        try:
            self.writer.close()
        finally:
            self.file.close()
        return self.digest.hexdigest()
