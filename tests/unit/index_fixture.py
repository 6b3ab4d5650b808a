"""A table corpus of noises, indexed: what the tests of index share."""

import json
import tempfile
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import soundfile

from aut.config import Index, Source
from aut.layout import Layout
from aut.sources import scan

LIMITS = {"quarantine_max_fraction": 0.0, "min_s": 0.05, "max_s": 20.0, "max_text_tokens": 40}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(rows, role=..., **limits) -> (params, layout): a table corpus whose files the test has written."""
    corpus = tmp_path / "data/mine"
    corpus.mkdir(parents=True)
    monkeypatch.setenv("AUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))

    def build(rows, role="environment", root="clone", **limits):
        (corpus / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        source = Source(dataset="table", role=role, domain="environment", path="mine", options={"file": "rows.jsonl"})
        values = {**LIMITS, "tokenizer": "utf8", "captions_per_label": 4, **limits}
        params = SimpleNamespace(sources={"mine": source}, index=Index(**values))
        layout = Layout(tmp_path / root)
        scan(params, layout, "mine")
        return params, layout

    def forget():
        monkeypatch.setenv("AUT_WORK", tempfile.mkdtemp(dir=tmp_path))

    build.corpus, build.forget = corpus, forget
    return build


def tones(corpus, count):
    rng = np.random.default_rng([7])
    for n in range(count):
        soundfile.write(corpus / f"{n:03d}.wav", rng.normal(0, 0.1, 8_000 + 100 * n), 16_000)
    order = rng.permutation(count)  # the table's order is not the ids'
    return [{"file": f"{n:03d}.wav", "label": f"c{n % 3}", "source_id": f"r{n // 2}"} for n in order]


def read(layout, role="environment"):
    index = pl.read_parquet(layout.index(role, "mine") / "part-*.parquet")
    sound = pl.read_parquet(layout.fingerprints(role, "mine") / "part-*.parquet")
    return index, sound, pl.read_parquet(layout.index(role, "mine") / "quarantine.parquet")
