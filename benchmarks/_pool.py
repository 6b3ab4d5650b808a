"""Pool: a synthetic index of any size, columns and value lengths as the index stage writes them.

In    a folder; sources by domain with their numbers of rows
Out   data/index/<domain>/<source>/part-*.parquet, data/screen/blocklist.parquet, and Params that name them
Why   24.5M real rows are not at hand. Ids and hashes are distinct; captions are pairs of 2,000 phrases a part, which
      compress better than real ones: a real mixture is larger on disk (here some 80 bytes a row)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from aut.config import Params, parse_params
from aut.contracts import INDEX_SCHEMA
from aut.layout import Layout
from aut.stages.index import PART
from aut.stages.index import _write_parquet as write_index_part
from aut.units import Domain

PART_ROWS = PART  # the index stage's own vary by half around it
SENTENCE = (
    "a the of rain dog barks slowly while man speaks over music guitar piano and someone near distant engine hums "
    "water falls bright loud quiet steady wind leaves birds sing crowd cheers child laughs door closes bell rings"
)
WORDS = SENTENCE.split()
LENGTH_S = {"speech": 12.0, "environment": 9.0, "music": 10.0}


def params(sources: Mapping[Domain, Sequence[str]], **mixture: Any) -> Params:
    """The tiny profile's other sections with these pool sources; `mixture` overrides its section."""
    import tempfile

    from aut.config import compose

    conf = Path(__file__).parents[1] / "conf"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        compose("tiny", [], conf, path)
        values = yaml.safe_load(path.read_text())
    probes = {n: s for n, s in values["sources"].items() if s["role"] == "probe"}
    pool: dict[str, Any] = {
        name: {"dataset": "table", "role": domain, "domain": domain, "path": name, "options": {}}
        for domain, names in sources.items()
        for name in names
    }
    values["sources"] = probes | pool
    values["mixture"] |= mixture
    return parse_params(values, "benchmark")


def source(layout: Layout, domain: Domain, name: str, rows: int, seed: int = 0, recaption: str = "") -> None:
    """Writes one source's index; the same arguments give the same bytes.

    The index stage's writer makes the files. `recaption`: '' none, 'all', 'scattered' or 'clustered': which captions
    differ (1 % for the last two).
    """
    folder = layout.index(domain, name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        count = min(PART_ROWS, rows - start)
        table = _table(domain, name, start, count, np.random.default_rng([seed, start]))
        if recaption:
            table = _recaption(table, np.arange(start, start + count), rows, recaption)
        write_index_part(pl.DataFrame(table), folder / f"part-{number:05d}.parquet")


def block(layout: Layout, ids: Sequence[str]) -> None:
    """Writes the screen's blocklist, and an empty list of a person's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout.screen.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"id": pa.array(sorted(ids), pa.string()), "reason": pa.array(["content"] * len(ids), pa.string())}
    )
    pq.write_table(table, layout.screen / "blocklist.parquet")
    layout.exclude.touch()


def clip_id(name: str, row: int) -> str:
    return f"{name}/{row:09d}"


def _table(domain: Domain, name: str, start: int, count: int, rng: np.random.Generator) -> Any:
    import pyarrow as pa

    none = pa.nulls(count, pa.string())
    number = [f"{row:09d}" for row in range(start, start + count)]
    hashes = rng.bytes(16 * count).hex()
    phrases = [" ".join(rng.choice(WORDS, 11)) for _ in range(2_000)]
    first, second = rng.integers(len(phrases), size=(2, count)).tolist()
    licence = np.array(["CC BY 4.0", "CC0 1.0", "CC BY-NC 4.0"])[rng.integers(3, size=count)]
    values = {
        "id": [f"{name}/{n}" for n in number],
        "domain": [domain] * count,
        "source": [name] * count,
        "uri": [f"audio/{n[:5]}/{n}.flac" for n in number],
        "offset_b": pa.nulls(count, pa.int64()),
        "size_b": pa.nulls(count, pa.int64()),
        "start_s": np.zeros(count),
        "duration_s": np.round(rng.gamma(4.0, LENGTH_S[domain] / 4.0, count).clip(0.1, 30.0), 3),
        "sample_rate_hz": np.full(count, 16_000, np.int32),
        "text": [f"{phrases[a]} {phrases[b]}" for a, b in zip(first, second, strict=True)],
        "text_origin": ["human"] * count,
        "label": none,
        "licence": licence.tolist(),
        "split": ["train"] * count,
        "source_id": [n[:7] for n in number],
        "content_hash": [hashes[i : i + 32] for i in range(0, 32 * count, 32)],
        "freesound_id": none,
        "youtube_id": none,
    }
    return pa.table({name: values[name] for name in INDEX_SCHEMA})


def _recaption(table: Any, row_N: np.ndarray[Any, Any], rows: int, how: str) -> Any:
    import pyarrow as pa

    chosen = {"all": row_N >= 0, "scattered": row_N % 100 == 0, "clustered": row_N < rows // 100}[how]
    text = table["text"].to_pylist()
    for i in np.flatnonzero(chosen):
        text[i] = f"again, {text[i]}"
    return table.set_column(table.schema.get_field_index("text"), "text", pa.array(text, pa.string()))
