"""A tiny working copy for the screen: index and fingerprint parts written from arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aut.audio.fingerprint import fingerprint
from aut.config import Params, Screen, Source, read_params
from aut.layout import Layout
from aut.units import RATE_HZ

ROOT = Path(__file__).resolve().parents[2]


def params_of(sources: dict[str, Source], **screen: object) -> Params:
    """The committed params with these sources and this section `screen`."""
    params = read_params(ROOT / "params.yaml")
    return params.model_copy(update={"sources": sources, "screen": Screen(**{**params.screen.model_dump(), **screen})})


def source(role: str, domain: str, path: str = "corpus") -> Source:
    return Source(dataset="folder", role=role, domain=domain, path=path, options={})


def write_source(
    layout: Layout,
    name: str,
    entry: Source,
    clips: dict[str, NDArray[np.float32]],
    parts: int = 1,
    **columns: dict[str, Any],
) -> None:
    """Index and fingerprint parts of `clips` (key -> samples); `columns` give known ids, hashes or uris by key."""
    rows = []
    for key, pcm_T in sorted(clips.items()):
        given = {column: values.get(key) for column, values in columns.items()}
        content = hashlib.blake2b((pcm_T * 32767).astype("<i2").tobytes(), digest_size=16).hexdigest()
        row = {"id": f"{name}/{key}", "domain": entry.domain, "source": name, "uri": f"audio/{key}.wav"}
        row |= {
            "offset_b": None,
            "size_b": None,
            "start_s": 0.0,
            "duration_s": len(pcm_T) / RATE_HZ,
            "content_hash": content,
        }
        row |= {"freesound_id": None, "youtube_id": None, "fingerprint": fingerprint(pcm_T).astype("<u4").tobytes()}
        rows.append(row | given)
    text = dict.fromkeys(["content_hash", "freesound_id", "youtube_id"], pl.String)
    table = pl.DataFrame(rows, schema_overrides=text | {"offset_b": pl.Int64, "size_b": pl.Int64})
    index, prints = layout.index(entry.role, name), layout.fingerprints(entry.role, name)
    index.mkdir(parents=True)
    prints.mkdir(parents=True)
    for p in range(parts):
        part = table[p * len(table) // parts : (p + 1) * len(table) // parts]
        part.drop("fingerprint").write_parquet(index / f"part-{p:05d}.parquet")
        part.select("id", "fingerprint").write_parquet(prints / f"part-{p:05d}.parquet")
