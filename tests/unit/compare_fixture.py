"""A working copy as `compare` finds it: predictions of four encoders on two sets, made up; no stage is run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from aut.config import Params, read_params
from aut.files import write_json
from aut.layout import Layout

CHECKOUT = Path(__file__).parents[2]
SETS = {"toy_sounds_probe": ["grouped", "paper_gtzan"], "toy_words_probe": ["grouped"]}
ENCODERS = {"base": 0.5, "random": 0.2, "adapted-0": 0.8, "adapted-1": 0.7, "control-0": 0.55, "control-1": 0.5}
CLIPS, PER_RECORDING = 60, 3
LABELS = ("rain & <b>wind</b>", "bell", "dog")


def params_of(**compare: Any) -> Params:
    """The checkout's params with two arms of two seeds and the sets above."""
    params = read_params(CHECKOUT / "params.yaml")
    changes = {"a": "adapted", "against": ["base", "control"], "baselines": ["random"], "resamples": 400}
    return params.model_copy(
        update={
            "probe": params.probe.model_copy(update={"sets": SETS}),
            "embed": params.embed.model_copy(update={"encoders": list(ENCODERS), "poolings": ["valid"]}),
            "export": params.export.model_copy(update={"encoders": list(ENCODERS)}),
            "finetune": params.finetune.model_copy(update={"arms": ["adapted", "control"], "seeds": [0, 1]}),
            "compare": params.compare.model_copy(update=changes | compare),
        }
    )


def predictions(name: str, encoder: str, clips: int = CLIPS, layers: int = 2) -> pl.DataFrame:
    """Each clip right with the encoder's probability, by clip, view and encoder; k-NN and layers are worse."""
    views = [("grouped", "valid", "linear", 0.0, 1), ("grouped", "valid", "knn", -0.1, 1)]
    views += [("grouped", f"valid.layer{n:02d}", "linear", -0.1 * (layers - n), 1) for n in range(layers)]
    views += [("paper_gtzan", "valid", "linear", 0.0, 3)] if "paper_gtzan" in SETS[name] else []
    return pl.concat(_view(name, encoder, clips, *view) for view in views)


def _view(
    name: str, encoder: str, clips: int, protocol: str, pooling: str, variant: str, worse: float, repeats: int
) -> pl.DataFrame:
    rows = []
    rng = np.random.default_rng([len(name), list(ENCODERS).index(encoder), len(protocol), len(pooling), len(variant)])
    for repeat in range(repeats):
        right = rng.random(clips) < ENCODERS[encoder] + worse
        for i in range(clips):
            label, other = LABELS[i % 3], LABELS[(i + 1) % 3]
            rows.append((repeat, f"{name}/{i:03d}", f"r{i // PER_RECORDING}", label, label if right[i] else other))
    frame = pl.DataFrame(rows, schema=["repeat", "id", "source_id", "label", "predicted"], orient="row")
    keys = {"protocol": protocol, "pooling": pooling, "variant": variant, "fold": "fold1"}
    return frame.with_columns(
        seed=pl.lit(0, pl.Int32), repeat=pl.col("repeat").cast(pl.Int32), **{k: pl.lit(v) for k, v in keys.items()}
    )


def transcribed(encoder: str) -> list[dict[str, Any]]:
    """Errors of the base and of an arm's seed on 24 clips of 10 words, two a recording."""
    arm = np.random.default_rng([9, list(ENCODERS).index(encoder)]).integers(0, 4, 24).tolist()
    base = np.random.default_rng([9]).integers(0, 3, 24).tolist()
    return [
        {"id": f"s/{i:02d}", "source_id": f"s{i // 2}", "words": 10, "base": base[i], "tuned": arm[i]}
        for i in range(24)
    ]


def write_tree(root: Path, flagged: Iterable[tuple[str, str]] = ()) -> Layout:
    """Every input of `compare` below `root`."""
    layout = Layout(root)
    for encoder in ENCODERS:
        for name in SETS:
            layout.probe(encoder, name).mkdir(parents=True)
            predictions(name, encoder).write_parquet(layout.probe(encoder, name) / "predictions.parquet")
            write_json(
                layout.embeddings(encoder, name) / "digests.json", {"encoder": f"digest-of-{encoder}", "clips": "c1"}
            )
        proof = {"passed": True, "drop_in": True, "max_error": 1e-6, "atol": 1e-4}
        write_json(layout.encoder(encoder) / "parity.json", proof)
        if "-" in encoder:
            facts = {"steps": 10, "clips": 320, "valid_seconds": 512.5, "tokens": 4_000, "loss": 1.25}
            write_json(layout.encoder(encoder) / "training.json", facts)
            write_json(layout.encoder(encoder) / "speech.json", {"clips": transcribed(encoder)})
    layout.screen.mkdir(parents=True)
    pairs = list(flagged)
    columns = {"probe_set": [s for s, _ in pairs], "probe_id": [i for _, i in pairs]}
    pl.DataFrame(columns, schema={"probe_set": pl.String, "probe_id": pl.String}).write_parquet(
        layout.screen / "flagged.parquet"
    )
    domains = {d: {"pool": 1_000, "flagged": 2, "fraction": 0.002} for d in ("speech", "environment", "music")}
    write_json(layout.screen / "report.json", {"domains": domains})
    part = {"clips": 900, "hours": 1.5, "share": 1.0, "rows": 1_000}
    stats: dict[str, Any] = {k: {f"one {k}": part} for k in ("source", "licence", "text_origin")}
    stats["duration"] = {"to 1 s": part}
    stats["domain"] = {"speech": part | {"share": 0.8}, "environment": part | {"share": 0.2}}
    write_json(layout.mixture / "stats.json", stats | {"rows": 1_000, "digest": "abc"})
    return layout
