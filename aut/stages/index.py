"""Index: reads a corpus, one row a clip; what cannot be used goes to the quarantine with a reason.

In    data/corpora/<source>.json (`aut sources scan`), the corpus below AUT_DATA (generated ones are written first)
Out   data/index/<role>/<source>/: part-*.parquet sorted by id, quarantine.parquet, summary.json;
      data/fingerprints/<role>/<source>/: part-*.parquet, the same rows in the same order
Why   a clip is decoded once, for its duration, content hash and fingerprint. Blocks of clips go to any Executor and
      come back as Parquet bytes, kept in AUT_WORK: a kill -9 loses the blocks in flight, and a later run decodes only
      what is new or changed, whatever else is (aut/datasets/_heard.py). Sorting is by distribution
      (splitters from a sample of ids), so memory is a part, whatever the corpus' size; a clip more changes a
      part or two (docs/data.md has figures).
      Price: the corpus is listed twice (ids are checked before anything is decoded), blocks are written twice.
Run   aut index SOURCE
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.config import Params
from aut.contracts import INDEX_SCHEMA, Clip, Tracker
from aut.datasets import list_clips, prepare
from aut.datasets._contents import Contents
from aut.datasets._heard import STALE_S, Blocks
from aut.datasets._rows import Policy, read_block
from aut.errors import Busy, DataError, GateError, MissingInput
from aut.files import digest_code, digest_file, digest_json, locked, read_json, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.progress import progress

if TYPE_CHECKING:
    import polars as pl

BLOCK = 256  # clips: one call of the executor, one file that survives a kill
PART = 50_000  # rows of a part, 0.5 to 1.5 times: 125 bytes of fingerprint a second, 60 MB for 10-s clips
SAMPLE = 64  # one id in so many may begin a part
ALONE = 2500  # clips: below, starting workers costs more than it saves, with another stage on the other cores
QUARANTINE = ["id", "uri", "reason", "detail"]
ANEW = (
    "the memory of {} starts anew (its corpus moved, the decoder is another, or changes were accepted), so a file that "
    "changed under its old name was not seen: compare the index' digest with an earlier run's"
)
FORMAT = 1  # of blocks: raise it when their columns change
CODE = (
    "datasets/_rows.py", "datasets/_captions.py", "datasets/_heard.py", "datasets/_tokens.py",
    "contracts.py", "units.py",
)  # fmt: skip
"""What makes rows of Clips and their sounds: blocks of other code are read again, and not decoded."""
DECODER = ("audio/container.py", "audio/decode.py", "audio/plain.py", "audio/rate.py")
LISTENER = ("audio/fingerprint.py",)


@dataclass(frozen=True)
class Work:
    """One source on its way: where it is read from, what decides its rows, what is known of it."""

    source: str
    dataset: str
    root: Path
    options: Mapping[str, Any]
    policy: Policy
    folder: Path
    blocks: Blocks
    contents: Contents

    def clips(self) -> Iterator[Clip]:
        return list_clips(self.dataset, self.root, self.options)


def index(
    params: Params, layout: Layout, track: Tracker, source: str, executor: Executor | None = None
) -> dict[str, float | int | str]:
    """Writes `layout.index` and `layout.fingerprints` of a source.

    `executor` reads the blocks (processes here by default, a Dask cluster's `get_executor()` elsewhere): same bytes.
    Raises DataError for two clips of one id and for an id whose sound is another than before, GateError where
    quarantine_max_fraction is passed. Waits for another process that indexes the same corpus.
    """
    work = _work(params, layout, source)
    _prune(work)
    with _alone(work):
        anew = work.contents.begins_anew()
        prepare(work.dataset, work.root, work.options)
        total = _check_ids(work)
        blocks = _read(work, total, executor)
        report = _write(work, layout, params, blocks)
        work.blocks.keep(blocks)
    if anew:
        print(f"index: warning: {ANEW.format(source)}", file=sys.stderr)  # noqa: T201
        track.tags({"index.warning": ANEW.format(source)})
    folder = layout.index(params.sources[source].role, source)
    track.params({f"index.{k}": str(v) for k, v in params.index.model_dump().items()})
    track.dataset(source, report["digest"], report["clips"], folder)
    track.artifact(folder / "summary.json", f"index/{source}")
    return _metrics(report)


def _work(params: Params, layout: Layout, source: str) -> Work:
    if source not in params.sources:
        raise DataError(f"params name no source '{source}'", f"choose one of {', '.join(sorted(params.sources))}")
    s = params.sources[source]
    inventory = layout.corpus(source)
    if not inventory.exists():
        raise MissingInput(f"{inventory} is missing", f"run `aut sources scan {source}`")
    root = layout.corpus_root(s.dataset, s.path)
    listed = read_json(inventory)
    # Another decoder may hear other samples in the same file, another corpus hold other files: then nothing is known
    # yet. Other options, limits or adapters leave a clip its id and its sound, or what they change is to be seen.
    same = [source, s.dataset, str(root), listed.get("edition", 0), _decoder()]
    contents = Contents(layout.work / "index" / f"{source}-{digest_json(same)[:16]}.contents.parquet", source)
    # More decides the rest of what is kept of a sound. It is no reason to forget what an id held.
    folder = layout.work / "index" / f"{source}-{digest_json([*same, _listener()])[:16]}"
    blocks = Blocks(folder / "blocks", root)
    return Work(source, s.dataset, root, s.options, Policy.of(source, s, params.index), folder, blocks, contents)


def _decoder() -> list[str]:
    """What decides the samples, and so the content hash, of a file: our decoding and the libraries below it."""
    from importlib.metadata import version

    import soundfile

    return [digest_code(*DECODER), soundfile.__libsndfile_version__, version("soxr"), version("numpy")]


def _listener() -> list[str | int]:
    """What decides the rest of what a block holds of a sound."""
    from importlib.metadata import version

    return [FORMAT, digest_code(*LISTENER), version("scipy")]


@contextmanager
def _alone(work: Work) -> Iterator[None]:
    """Another profile may read the same corpus. What it hears will be known, so it is waited for."""
    lock, what = work.folder / "lock", f"indexing {work.source}"
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, what))
        except Busy as busy:
            print(f"index: {busy.what}, and is waited for", file=sys.stderr)  # noqa: T201
            held.enter_context(locked(lock, what, wait=True))
        yield


def _prune(work: Work) -> None:
    """Removes what earlier runs of the source left in AUT_WORK, unless it is fresh or some process holds it."""
    mine = re.compile(re.escape(work.source) + "-[0-9a-f]{16}")
    for folder in work.folder.parent.glob(f"{work.source}-*"):
        if folder == work.folder or not folder.is_dir() or not mine.fullmatch(folder.name):
            continue
        touched = max(p.stat().st_mtime for p in (folder, folder / "blocks") if p.exists())
        with suppress(Busy):
            if time.time() - touched > STALE_S:
                with locked(folder / "lock", f"indexing {work.source}"):
                    shutil.rmtree(folder)


# --- listing ------------------------------------------------------------------------------------------------------


def _check_ids(work: Work) -> int:
    """Number of clips, once no two have one id. 8 bytes a clip, so that 20M fit; DataError names both places."""
    import numpy as np

    with progress(f"list {work.source}", None) as advance:
        counted = (_tick(_id_hash(clip.key), advance) for clip in work.clips())
        ids = np.fromiter(counted, dtype=np.uint64)
    if not len(ids):
        raise DataError(f"{work.root} holds no clip for source {work.source}", f"try `aut sources check {work.source}`")
    total = len(ids)
    ids.sort()
    twice = {int(i) for i in ids[1:][ids[1:] == ids[:-1]]}
    del ids
    seen: dict[str, Clip] = {}
    for clip in work.clips() if twice else ():
        if _id_hash(clip.key) in twice:
            first = seen.setdefault(clip.key, clip)
            if first is not clip:
                raise _same_id(work, first, clip)
    return total


def _same_id(work: Work, first: Clip, second: Clip) -> DataError:
    """Where both were listed: the table and its rows, for other layouts the corpus and what each one names."""
    table = work.root / str(work.options.get("file", ""))
    what = f"two clips of source {work.source} ({table}) have the id {work.source}/{first.key}"
    if "row" in first.extra:
        remedy = "remove one of the rows, or name a column that tells them apart in options.columns.key"
    else:
        remedy = "remove one of them from the corpus or its lists"
    return DataError(f"{what}: {_where(first)} and {_where(second)}", remedy)


def _tick(value: int, advance: Any) -> int:
    advance(1)
    return value


def _id_hash(key: str) -> int:
    from hashlib import blake2b

    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _where(clip: Clip) -> str:
    member = "" if clip.offset_b is None else f" at byte {clip.offset_b:,}"
    cut = f" from {clip.start_s:g} s" if clip.length_s is not None else ""
    row = f"row {clip.extra['row']}, " if "row" in clip.extra else ""
    return f"{row}{clip.uri}{member}{cut}"


# --- reading, block by block --------------------------------------------------------------------------------------


def _read(work: Work, total: int, executor: Executor | None) -> list[Path]:
    """The blocks as they follow each other, each there once this returns; at most two a worker are in flight."""
    rules = digest_json([work.policy.identity(), digest_code(*CODE)])
    blocks: list[Path] = []
    with progress(f"index {work.source}", total) as advance, _runner(total, executor) as (run, ahead):
        flying: dict[Future[bytes], tuple[int, int]] = {}
        try:
            for number, clips in enumerate(_blocks(work.clips())):
                sounds = work.blocks.sounds(clips)
                blocks.append(work.blocks.path(clips, sounds, rules))
                if work.blocks.is_done(blocks[-1]):
                    advance(len(clips))
                    continue
                task = (str(work.root), clips, sounds, work.policy, work.blocks.recall(sounds))
                if run is None:
                    write_bytes(blocks[-1], read_block(*task))
                    advance(len(clips))
                else:
                    flying[run.submit(read_block, *task)] = (number, len(clips))
                    if len(flying) >= ahead:
                        _land(blocks, flying, advance)
            while flying:
                _land(blocks, flying, advance)
        except BrokenExecutor as error:
            numbers = ", ".join(str(n) for n, _ in sorted(flying.values()))
            raise DataError(
                f"a worker died while it read {work.source}, one of the blocks {numbers} ({BLOCK} clips each)",
                "free some memory, or find the file that kills the decoder; finished blocks are kept, run it again",
            ) from error
        finally:
            for future in flying:
                future.cancel()
    return blocks


def _land(blocks: Sequence[Path], flying: dict[Future[bytes], tuple[int, int]], advance: Any) -> None:
    done, _ = wait(flying, return_when=FIRST_COMPLETED)
    for future in done:
        number, clips = flying[future]
        write_bytes(blocks[number], future.result())
        del flying[future]
        advance(clips)


def _blocks(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    listing = iter(clips)
    while block := list(islice(listing, BLOCK)):
        yield block


@contextmanager
def _runner(total: int, executor: Executor | None) -> Iterator[tuple[Executor | None, int]]:
    """(executor or None for this process, blocks in flight)."""
    if executor is not None:
        yield executor, 2 * _cores(executor)
        return
    workers = min(len(os.sched_getaffinity(0)), -(-total // BLOCK))
    if workers < 2 or total < ALONE:
        yield None, 0
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield processes, 2 * workers


def _cores(executor: Executor) -> int:
    """Calls that run at once: a pool's workers, a Dask cluster's cores, else a guess."""
    ncores = getattr(getattr(executor, "_client", None), "ncores", None)
    if ncores is not None:
        return max(1, int(sum(ncores().values())))
    return getattr(executor, "_max_workers", None) or 32


# --- sorting, writing ---------------------------------------------------------------------------------------------


def _write(work: Work, layout: Layout, params: Params, blocks: list[Path]) -> dict[str, Any]:
    """Both outs and the summary. The gate is judged before either is replaced."""
    role = params.sources[work.source].role
    with _rows_by_part(work, blocks) as parts, ExitStack() as drafts:
        out = drafts.enter_context(replacing(layout.index(role, work.source)))
        sound = drafts.enter_context(replacing(layout.fingerprints(role, work.source)))
        report = _write_parts(parts, out, sound)
        key, limit = _limit(params, work.source)
        total = report["clips"] + report["quarantined"]
        if report["quarantined"] > limit * total or not report["clips"]:
            kept = work.folder / "quarantine.parquet"
            write_bytes(kept, (out / "quarantine.parquet").read_bytes())
            remedy = f"mend these, or give the source another limit, sources.{work.source}.quarantine_max_fraction"
            raise GateError(_refusal(work, report, total, f"{key} is {limit:g}", kept), remedy)
        work.contents.refuse_changed(sorted(out.glob("part-*.parquet")))
        write_json(out / "summary.json", {"source": work.source, "role": role, **report})
    work.contents.remember(sorted(layout.index(role, work.source).glob("part-*.parquet")))
    return report


def _limit(params: Params, source: str) -> tuple[str, float]:
    """The source's own limit, else that of all, and the key that gives it."""
    own = params.sources[source].quarantine_max_fraction
    if own is None:
        return "index.quarantine_max_fraction", params.index.quarantine_max_fraction
    return f"sources.{source}.quarantine_max_fraction", own


def _refusal(work: Work, report: Mapping[str, Any], total: int, limit: str, kept: Path) -> str:
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(report["reasons"].items()))
    return f"{report['quarantined']} of {total} clips of {work.source} cannot be used ({reasons}); {limit}; see {kept}"


@contextmanager
def _rows_by_part(work: Work, blocks: list[Path]) -> Iterator[Iterator[pl.DataFrame]]:
    """Frames of about PART rows that follow each other in the order of ids, quarantined rows included."""
    import numpy as np
    import polars as pl

    splitters = pl.Series(_splitters(blocks), dtype=pl.String)
    if splitters.is_empty():
        yield iter([pl.read_parquet(blocks).sort("id")])
        return
    folder = work.folder / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    for number, block in enumerate(blocks):
        rows = pl.read_parquet(block)
        part = np.asarray(splitters.search_sorted(rows.get_column("id"), side="right"))
        for p in np.unique(part):
            (folder / f"{p:05d}").mkdir(parents=True, exist_ok=True)
            rows.filter(part == p).write_ipc(folder / f"{p:05d}" / f"{number:06d}.arrow", compression="zstd")
    try:
        yield (_joined(p) for p in sorted(folder.iterdir()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _splitters(blocks: Sequence[Path]) -> list[str]:
    """First id of each part but the first: of half to one and a half times PART rows after a splitter, the sampled id
    of the smallest hash. Ids are sampled by hash, too, so a clip more or less moves no splitter but those beside it.
    """
    import numpy as np
    import polars as pl

    ids = (i for block in blocks for i in pl.read_parquet(block, columns=["id"])["id"])
    found = sorted((i, h) for i in ids if (h := _id_hash(i)) % SAMPLE == 0)
    hashes = np.array([h for _, h in found], np.uint64)
    low, high = PART // (2 * SAMPLE), 3 * PART // (2 * SAMPLE)
    at, first = 0, []
    while len(found) - at > high:
        at += low + int(hashes[at + low : at + high].argmin())
        first.append(found[at][0])
    return first


def _joined(folder: Path) -> pl.DataFrame:
    import polars as pl

    return pl.concat([pl.read_ipc(p) for p in sorted(folder.iterdir())]).sort("id")


def _write_parts(parts: Iterator[pl.DataFrame], out: Path, sound: Path) -> dict[str, Any]:
    import polars as pl

    tally, quarantine, number = _Tally(), [], 0
    for rows in parts:
        _refuse_twins(rows)
        bad = rows.filter(pl.col("reason").is_not_null())
        good = rows.filter(pl.col("reason").is_null())
        quarantine.append(bad.select(QUARANTINE))
        tally.add(good, bad)
        if len(good):
            name = f"part-{number:05d}.parquet"
            _write_parquet(good.select(list(INDEX_SCHEMA)), out / name)
            _write_parquet(good.select("id", "fingerprint"), sound / name)
            tally.digest_of(out / name)
            number += 1
    _write_parquet(pl.concat(quarantine), out / "quarantine.parquet")
    return tally.report()


def _refuse_twins(rows: pl.DataFrame) -> None:
    """DataError for two rows of one id, which follow each other. The listing was asked before, and may have changed."""
    import polars as pl

    if twins := rows.filter(pl.col("id") == pl.col("id").shift()).get_column("id").to_list():
        raise DataError(f"two clips have the id {twins[0]}", "run it again when nobody writes to the corpus")


def _write_parquet(rows: pl.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd", row_group_size=16_384)
    write_bytes(path, buffer.getvalue())


class _Tally:
    """What the summary says, added up part by part; 8 bytes a row for counting texts that occur more than once."""

    def __init__(self) -> None:
        self._clips, self._seconds, self._digests = 0, 0.0, [""]
        self._by: dict[str, Counter[str]] = {c: Counter() for c in ("reason", "text_origin", "licence", "split")}
        self._labels: Counter[str] = Counter()
        self._texts: list[Any] = []

    def add(self, good: pl.DataFrame, bad: pl.DataFrame) -> None:
        self._clips += len(good)
        self._seconds += float(good.get_column("duration_s").sum())
        for column, counter in (*self._by.items(), ("label", self._labels)):
            counts = (bad if column == "reason" else good).get_column(column).drop_nulls().value_counts()
            counter.update(dict(counts.iter_rows()))
        self._texts.append(good.get_column("text").drop_nulls().hash(seed=0).to_numpy())

    def digest_of(self, part: Path) -> None:
        self._digests.append(digest_file(part))

    def report(self) -> dict[str, Any]:
        import numpy as np

        texts = np.concatenate(self._texts) if self._texts else np.zeros(0)
        return {
            "clips": self._clips,
            "hours": round(self._seconds / 3600, 6),
            "quarantined": self._by["reason"].total(),
            "reasons": dict(self._by["reason"]),
            "texts": len(texts),
            "texts_repeated": len(texts) - len(np.unique(texts)),
            "text_origins": dict(self._by["text_origin"]),
            "licences": dict(self._by["licence"]),
            "splits": dict(self._by["split"]),
            "labels": len(self._labels),
            "digest": digest_json(self._digests),
        }


def _metrics(report: Mapping[str, Any]) -> dict[str, float | int | str]:
    names = ("clips", "hours", "quarantined", "texts_repeated", "labels", "digest")
    return {**{n: report[n] for n in names}, **{f"quarantined_{r}": n for r, n in report["reasons"].items()}}
