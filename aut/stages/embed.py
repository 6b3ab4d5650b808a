"""Embed: one vector a clip of a probe set, cached by content.

In    models/encoders/<encoder>/, data/index/probe/<set>/, the corpus
Out   data/embeddings/<encoder>/<set>/{embeddings.safetensors, clips.parquet, digests.json}
Why   the cache key is weights, preprocessing (its code too) and clips, never a name: the same encoder under another
      name costs nothing, other weights under the same name never reuse a vector. Blocks of rows are kept as they are
      done, so a killed run continues. Price: 'padded' costs a 30-s forward a clip; leave it out of embed.poolings to
      skip it.
Run   aut embed adapted-0 toy_words
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.config import Params
from aut.contracts import Tracker
from aut.encoders import open_encoder
from aut.errors import DataError, MissingInput
from aut.files import digest_code, digest_json, locked, replacing, write_bytes, write_json
from aut.layout import Layout
from aut.progress import progress
from aut.units import RATE_HZ

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from aut.encoders.clipwise import ClipEncoder

CODE = ("encoders", "audio")
BLOCK_ROWS = 256  # of one resumable file; at 30 s each, 0.5 GB of samples
KEPT = ("id", "source_id", "label", "split", "domain")
READ = (*KEPT, "uri", "offset_b", "size_b", "start_s", "duration_s", "content_hash")


def embed(params: Params, layout: Layout, track: Tracker, encoder: str, probe_set: str) -> dict[str, float | int | str]:
    """Writes the vectors of every clip of the set, in the index's order, for each pooling of params.

    DataError names the clip that cannot be read or whose vector is not finite.
    """
    started = time.monotonic()
    opened = open_encoder(layout.encoder(encoder), device())
    rows = read_rows(layout.index("probe", probe_set), probe_set)
    clips = digest_json(rows.select("id", "content_hash").rows())
    preprocessing = {"max_s": params.embed.max_s, "rate_hz": opened.rate_hz, "poolings": params.embed.poolings}
    preprocessing |= {"layers": params.embed.layers}
    digests = {"encoder": opened.digest, "preprocessing": digest_json(preprocessing), "clips": clips}
    # What computes a vector is part of where it is kept, but not of what is written: a comment changes no output.
    key = digest_json(digests | {"code": digest_code(*CODE)})
    cache = layout.work / "cache/embeddings"
    file = cache / f"{key}.safetensors"
    with locked(cache / f"{key}.lock", f"embed {encoder} {probe_set}", wait=True):
        cached = file.is_file()
        if not cached:
            source = params.sources[probe_set]
            root = layout.corpus_root(source.dataset, source.path)
            _compute(opened, rows, root, params, file)
        with replacing(layout.embeddings(encoder, probe_set)) as draft:
            shutil.copyfile(file, draft / "embeddings.safetensors")
            rows.select(KEPT).write_parquet(draft / "clips.parquet")
            write_json(draft / "digests.json", digests)
    seconds = float(rows["duration_s"].sum())
    track.dataset(probe_set, clips, rows.height, layout.index("probe", probe_set))
    track.tags({"encoder_digest": opened.digest, "embeddings_key": key})
    track.metrics({"took_s": time.monotonic() - started, "cached": float(cached)})
    return {"clips": rows.height, "audio_s": round(seconds, 3), "width": opened.width}


def device() -> str:
    """The first GPU where there is one; AUT_DEVICE overrides."""
    import torch

    return os.environ.get("AUT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def read_rows(index: Path, name: str) -> pl.DataFrame:
    """Rows of an indexed set, in order. MissingInput: not indexed. DataError: no clip in it."""
    import polars as pl

    parts = sorted(index.glob("part-*.parquet"))
    if not parts:
        raise MissingInput(f"{index} has no part-*.parquet", f"aut index {name}")
    rows = pl.concat([pl.read_parquet(part, columns=list(READ)) for part in parts])
    if not rows.height:
        raise DataError(f"probe set {name} has no clip", "look at its quarantine.parquet")
    return rows


def _compute(encoder: ClipEncoder, rows: pl.DataFrame, root: Path, params: Params, file: Path) -> None:
    """Fills what is missing of the blocks, then joins them into `file`."""
    from safetensors.numpy import load_file, save

    folder = file.with_suffix(".blocks")
    starts = range(0, rows.height, BLOCK_ROWS)
    blocks = [folder / f"{start:09d}.safetensors" for start in starts]
    todo = [start for start, block in zip(starts, blocks, strict=True) if not block.is_file()]
    layers = params.embed.layers == "all"
    with progress(f"embed {encoder.name}", rows.height) as advance:
        advance(rows.height - sum(min(BLOCK_ROWS, rows.height - start) for start in todo))
        for start, part, clips in _decoded(rows, todo, root, params.embed.max_s, encoder.rate_hz):
            vectors = encoder.pooled(clips, params.embed.poolings, layers)
            _check(vectors, part)
            write_bytes(folder / f"{start:09d}.safetensors", save(vectors))
            advance(len(part))
    parts = [load_file(block) for block in blocks]
    write_bytes(file, save({name: np.concatenate([p[name] for p in parts]) for name in parts[0]}))
    shutil.rmtree(folder, ignore_errors=True)


def _decoded(
    rows: pl.DataFrame, starts: Sequence[int], root: Path, max_s: float, rate_hz: int
) -> Iterator[tuple[int, list[dict[str, Any]], list[NDArray[np.float32]]]]:
    """Blocks with their clips; the next block is decoded by threads while one is encoded."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:

        def submit(start: int) -> tuple[int, list[dict[str, Any]], list[Future[NDArray[np.float32]]]]:
            part = rows.slice(start, BLOCK_ROWS).to_dicts()
            return start, part, [pool.submit(_clip, root, row, max_s, rate_hz) for row in part]

        ahead = submit(starts[0]) if starts else None
        for following in [*starts[1:], None]:
            if ahead is None:
                return
            start, part, futures = ahead
            ahead = None if following is None else submit(following)
            try:
                yield start, part, [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _clip(root: Path, row: dict[str, Any], max_s: float, rate_hz: int) -> NDArray[np.float32]:
    from aut.audio.decode import Unreadable, read_clip
    from aut.audio.rate import resampled

    try:
        pcm_T: NDArray[np.float32] = read_clip(root, row, max_s)
    except (Unreadable, OSError) as error:
        raise DataError(
            f"clip {row['id']} ({row['uri']}) cannot be read: {error}", "restore it, or index again"
        ) from error
    return resampled(pcm_T, RATE_HZ, rate_hz)


def _check(vectors: dict[str, NDArray[np.float32]], part: list[dict[str, Any]]) -> None:
    for name, values in vectors.items():
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            bad = part[int(np.argmin(finite))]["id"]
            raise DataError(f"the '{name}' embedding of clip {bad} is not finite", "check the encoder's weights")
