"""Register, its own part: the folder that becomes a model version, its card, and what the gates say.

In    models/encoders/<champion encoder>, data/probe/<it>/<set>/head.*, data/embeddings/<it>/<set>, reports/compare,
      params, data/runs, dvc.lock
Out   a folder below AUT_WORK: encoder/, heads/<set>/, neighbours/, evidence.json, report.html, README.md, lineage/
Why   everything a reviewer or a server needs travels with the version; aut/edges/registry.py only sends it.
Price a copy of the encoder's weights (removed once registered).
Run   aut register
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aut.config import Params
from aut.errors import DataError, MissingInput
from aut.files import digest_file, digest_tree, read_json, write_json
from aut.gates import Verdict
from aut.layout import Layout
from aut.report.page import commands, with_lineage

SERVED = ("encoder", "heads", "neighbours", "evidence.json", "report.html")
"""What a server takes of a package."""
HEAD_FILES = ("head.safetensors", "head.json")
NEIGHBOURS = 2_000  # probe clips of a set whose vectors travel with a version: 10 MB at a width of 1,280


@dataclass(frozen=True)
class Package:
    """What is registered: a folder, and the facts that go onto the version as tags."""

    folder: Path
    name: str  # of the registered model
    encoder: str
    weights: str  # encoder digest: weights and preprocessing
    tree: str  # digest of the encoder folder, checked after every download
    evidence: str  # digest of evidence.json
    verdicts: tuple[Verdict, ...]
    lineage: Mapping[str, str]
    card: str


def served_digests(folder: Path) -> dict[str, str]:
    """Of each part of a package that a server takes."""
    return {name: digest_tree(folder / name) for name in SERVED if (folder / name).exists()}


def pack(params: Params, layout: Layout, folder: Path) -> Package:
    """Fills `folder` (emptied first). MissingInput names the stage's output that is not there."""
    name = params.champion_encoder
    encoder = layout.encoder(name)
    facts = read_json(encoder / "encoder.json")
    evidence = read_json(layout.evidence / "evidence.json")
    verdicts = tuple(Verdict(**v) for v in evidence["verdicts"])
    _check_weights(evidence, name, str(facts["digest"]))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(encoder, folder / "encoder")
    for probe_set in params.embed.sets:
        _copy(layout.probe(name, probe_set), folder / "heads" / probe_set, HEAD_FILES)
        neighbours(layout.embeddings(name, probe_set), folder / "neighbours", probe_set)
    _copy(layout.evidence, folder, ("evidence.json", "report.html"))
    made = lineage(layout, name)
    page = folder / "report.html"
    page.write_text(with_lineage(page.read_text(), made | {"aut.digest.weights": str(facts["digest"])}))
    _copy(layout.root, folder / "lineage", [n for n in ("params.yaml", "dvc.lock") if (layout.root / n).exists()])
    package = Package(
        folder=folder,
        name=params.register_.name,
        encoder=name,
        weights=str(facts["digest"]),
        tree=digest_tree(folder / "encoder"),
        evidence=digest_file(folder / "evidence.json"),
        verdicts=verdicts,
        lineage=made,
        card=model_card(params, facts, evidence, verdicts),
    )
    (folder / "README.md").write_text(package.card)
    return package


def _check_weights(evidence: Mapping[str, Any], name: str, digest: str) -> None:
    """DataError where the evidence is of other weights than those that would be registered with it."""
    for probe_set, proved in evidence.get("encoders", {}).items():
        if proved.get(name, digest) != digest:
            raise DataError(
                f"{name} has the digest {digest[:12]}, the evidence on {probe_set} is of {proved[name][:12]}",
                "`dvc repro compare`, or `aut embed`, `aut probe` and `aut compare` again",
            )


def neighbours(embeddings: Path, target: Path, probe_set: str) -> None:
    """Vectors and labels of up to NEIGHBOURS clips, evenly spaced over the set, for 'what is this clip like?'.

    Writes nothing where the clips were not embedded over their valid frames.
    """
    import numpy as np
    import polars as pl
    from safetensors.numpy import load_file, save_file

    file = embeddings / "embeddings.safetensors"
    vectors = load_file(file).get("valid") if file.is_file() else None
    if vectors is None or not len(vectors):
        return
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(NEIGHBOURS, len(vectors))).round().astype(int))
    clips = pl.read_parquet(embeddings / "clips.parquet", columns=["id", "label"])[rows]
    target.mkdir(exist_ok=True)
    save_file({"valid": np.ascontiguousarray(vectors[rows])}, target / f"{probe_set}.safetensors")
    labels = clips["label"].fill_null("").to_list()
    write_json(target / f"{probe_set}.json", {"ids": clips["id"].to_list(), "labels": labels})


def lineage(layout: Layout, encoder: str) -> dict[str, str]:
    """Tags that lead back: revision and params of the weights, DVC's digests, the MLflow run of each maker."""
    import yaml

    tags: dict[str, str] = {}
    for stage, record in (
        (stage, layout.run_record(stage, item))
        for stage, item in (("mixture", ""), ("finetune", encoder), ("export", encoder), ("compare", ""))
    ):
        made = read_json(record) if record.exists() else {}
        tags |= {f"aut.run.{stage}": str(made["run_id"])} if made.get("run_id") else {}
        if stage == "finetune":
            tags |= {f"aut.weights.{k}": str(made[k]) for k in ("revision", "params_digest", "seed") if k in made}
    lock = layout.root / "dvc.lock"
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}
    outs = {o["path"]: o.get("md5", "") for s in stages.values() for o in s.get("outs", [])}
    for tag, path in (
        ("encoder", f"models/encoders/{encoder}"),
        ("mixture", "data/mixture"),
        ("evidence", "reports/compare"),
    ):
        tags |= {f"aut.dvc.{tag}": outs[path]} if outs.get(path) else {}
    return tags


def model_card(
    params: Params, encoder: Mapping[str, Any], evidence: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> str:
    """Markdown with the report's facts: what it is, how to use it, verdicts, differences, data, limits."""
    name = params.register_.name
    sections = [
        f"# {name}: {params.champion_encoder}",
        f"An audio encoder adapted from Whisper on the profile `{params.profile}`: {encoder.get('kind', '')}, "
        f"{encoder['width']} wide, one frame every {1000 * encoder['hop_s']:g} ms, {encoder['rate_hz']} Hz mono input. "
        f"Weights and preprocessing have the digest `{encoder['digest']}`.",
        "## Use",
        f'```python\nimport aut\nencoder = aut.load_encoder("models:/{name}@champion")\n'
        "embeddings, valid_frames = encoder.encode(waveforms, rate_hz=16_000)\n```",
        "## Verdicts",
        _table(("gate", "verdict", "because"), [_verdict_row(v) for v in verdicts]),
        "## Differences, percentage points",
        "Paired, bootstrap over recordings; p corrected by Holm; mdd is the smallest difference these clips can show.",
        _table(
            ("set", "domain", "difference", "points", "interval", "p (Holm)", "mdd", "clips", "recordings"),
            [_difference_row(r) for r in evidence.get("differences", [])],
        ),
        "## Accuracy of each encoder, %",
        _table(
            ("encoder", "set", "protocol", "pooling", "classifier", "accuracy", "interval"),
            [_accuracy_row(r) for r in evidence.get("table", [])],
        ),
        *_speech_kept(evidence),
        "## Training data",
        _mixture(params),
        *_licences(evidence),
        *_again(evidence),
        "## Limits",
        "The embedding says what a linear layer can read from a clip; it was measured on the probe sets above only. "
        "The licences of the training corpora (report.html) bind what the weights may be used for.",
    ]
    return "\n\n".join(sections) + "\n"


def _speech_kept(evidence: Mapping[str, Any]) -> list[str]:
    """Word error rates before the decoder was dropped; nothing where no arm transcribed."""
    rows = [
        (
            r["arm"],
            f"{r['base']:.1f}",
            f"{r['wer']:.1f}",
            f"{r['diff']:+.1f}",
            f"{r['diff_low']:+.1f} to {r['diff_high']:+.1f}",
        )
        for r in evidence.get("speech_kept", [])
    ]
    heads = ("arm", "base", "arm's", "difference", "interval")
    return ["## Speech kept: word error rate, %", _table(heads, rows)] if rows else []


def _mixture(params: Params) -> str:
    shares = ", ".join(f"{100 * share:g} % {domain}" for domain, share in params.mixture.quota.items())
    rows = [(domain, n, params.sources[n].dataset) for domain in params.mixture.quota for n in params.pool(domain)]
    return f"{params.mixture.rows:,} clips an epoch: {shares}.\n\n" + _table(("domain", "source", "corpus"), rows)


def _licences(evidence: Mapping[str, Any]) -> list[str]:
    """Clips and share of the training rows by licence."""
    found = evidence.get("mixture", {}).get("licence", {})
    rows = [(n, f"{v['clips']:,}", f"{100 * v['share']:.2f} %") for n, v in sorted(found.items())]
    return [_table(("licence", "clips", "share of rows"), rows)] if rows else []


def _again(evidence: Mapping[str, Any]) -> list[str]:
    if "again" not in evidence:
        return []
    return [
        "## To make it again",
        f"At the commit that the version's tags name:\n\n```sh\n{commands(dict(evidence))}\n```",
    ]


def _verdict_row(verdict: Verdict) -> tuple[str, str, str]:
    told = "pass" if verdict.passed else "**fail**" if verdict.decides else "no"
    return verdict.gate, told, verdict.detail


def _difference_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
    figures = (f"{row['diff']:+.1f}", interval, f"{row['p_holm']:.2g}", f"{row['mdd']:.1f}")
    return row["set"], row["domain"], f"{row['a']} - {row['b']}", *figures, str(row["clips"]), str(row["recordings"])


def _accuracy_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{row['low']:.1f} to {row['high']:.1f}"
    told = (row[k] for k in ("encoder", "set", "protocol", "pooling", "variant"))
    return *told, f"{row['accuracy']:.1f}", interval


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells)


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (source / name).exists():
            raise MissingInput(f"{source / name} is missing", "run the stage that writes it, or `dvc repro`")
        shutil.copy2(source / name, target / name)
