"""Predictions of all encoders on one probe set, aligned clip by clip.

A view is one way of testing (protocol, pooling, classifier). Its `correct[encoder]` is, for each clip, the share of
fits that got it right: over probe seeds, repeats and, for an arm, over its fine-tune seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from aut.config import Params
from aut.errors import DataError, MissingInput
from aut.files import read_json
from aut.layout import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Correct = NDArray[np.float64]

KEYS = ("protocol", "pooling", "variant")
LAYER = ".layer"


@dataclass(frozen=True)
class View:
    """One probe set under one protocol, pooling and classifier.

    ids, labels, cluster_N    [N] clips in the order of their ids; cluster_N numbers the recordings
    correct                   encoder or arm -> [N] share of fits that were right
    by_seed                   encoder or arm -> fine-tune seed's encoder -> [N]
    """

    name: str
    domain: str
    protocol: str
    pooling: str
    variant: str
    primary: bool
    ids: NDArray[np.str_]
    labels: NDArray[np.str_]
    cluster_N: NDArray[np.int64]
    correct: dict[str, Correct]
    by_seed: dict[str, dict[str, Correct]]
    predictions: dict[str, pl.DataFrame]
    digests: dict[str, str]

    @property
    def layer(self) -> int | None:
        """Number of the encoder layer that was pooled ('valid.layer03'); None for the encoder's output."""
        _, mark, number = self.pooling.partition(LAYER)
        return int(number) if mark else None

    def divisions(self, encoder: str) -> dict[tuple[int, str], float]:
        """(repeat, fold) -> accuracy of the fits on that test part, averaged over seeds."""
        frame = self.predictions[encoder].group_by("repeat", "fold").agg(pl.col("correct").mean())
        return {(repeat, fold): share for repeat, fold, share in frame.sort("repeat", "fold").iter_rows()}

    @property
    def label(self) -> dict[str, Any]:
        return {
            "set": self.name,
            "domain": self.domain,
            "protocol": self.protocol,
            "pooling": self.pooling,
            "variant": self.variant,
            "primary": self.primary,
        }

    @property
    def described(self) -> str:
        return f"{self.protocol}, {self.pooling} pooling, {self.variant}"

    def without(self, clips: set[str]) -> View:
        """The view with some clips left out of the test; the fits stay as they were."""
        keep = np.array([i not in clips for i in self.ids.tolist()], dtype=bool)
        return replace(
            self,
            ids=self.ids[keep],
            labels=self.labels[keep],
            cluster_N=self.cluster_N[keep],
            correct={k: x[keep] for k, x in self.correct.items()},
            by_seed={k: {s: x[keep] for s, x in v.items()} for k, v in self.by_seed.items()},
            predictions={k: f.filter(~pl.col("id").is_in(list(clips))) for k, f in self.predictions.items()},
        )

    def confusions(self, encoder: str, count: int) -> list[dict[str, Any]]:
        """The most frequent (label, predicted) mistakes of an encoder, in per cent of the label's tests."""
        frame = self.predictions[encoder]
        totals = frame.group_by("label").len("tests")
        wrong = frame.filter(pl.col("label") != pl.col("predicted")).group_by("label", "predicted").len("times")
        rows = wrong.join(totals, on="label").with_columns(percent=(100 * pl.col("times") / pl.col("tests")).round(1))
        top = rows.sort(["percent", "label", "predicted"], descending=[True, False, False]).head(count)
        return top.select("label", "predicted", "percent").to_dicts()


def load_views(params: Params, layout: Layout, name: str) -> Iterator[View]:
    """Every view of a probe set, the primary one first.

    Raises DataError where two encoders were not tested on the same clips, naming the difference, or one of them not
    under the protocol that decides.
    """
    frames = {e: _predictions(layout, e, name) for e in params.embed.encoders}
    embedded = {e: read_json(layout.embeddings(e, name) / "digests.json") for e in frames}
    digests = {e: str(d["encoder"]) for e, d in embedded.items()}
    _same_content(name, {e: str(d["clips"]) for e, d in embedded.items()})
    domain = params.sources[name].domain
    first = (params.probe.sets[name][0], params.embed.poolings[0], "linear")
    keys = {first} | {k for f in frames.values() for k in f.select(KEYS).unique().iter_rows()}
    for key in sorted(keys, key=lambda k: (k != first, k)):
        chosen = {
            e: f.filter(pl.all_horizontal(pl.col(c) == v for c, v in zip(KEYS, key, strict=True)))
            for e, f in frames.items()
        }
        chosen = {e: f for e, f in chosen.items() if len(f)}
        absent = sorted(frames.keys() - chosen.keys())
        if key == first and absent:
            raise DataError(f"probe set {name}: {absent[0]} has no {', '.join(first)}", f"aut probe {absent[0]} {name}")
        yield _view(name, domain, key, key == first, chosen, params, digests)


def _predictions(layout: Layout, encoder: str, name: str) -> pl.DataFrame:
    path = layout.probe(encoder, name) / "predictions.parquet"
    if not path.exists():
        raise MissingInput(f"{path} is missing", f"aut probe {encoder} {name}")
    return pl.read_parquet(path).with_columns(correct=(pl.col("label") == pl.col("predicted")).cast(pl.Float64))


def _view(
    name: str,
    domain: str,
    key: tuple[str, ...],
    primary: bool,
    frames: dict[str, pl.DataFrame],
    params: Params,
    digests: dict[str, str],
) -> View:
    per_clip = {e: f.group_by("id").agg(pl.col("correct").mean()).sort("id") for e, f in frames.items()}
    reference, first = next(iter(per_clip.items()))
    ids = first["id"].to_numpy().astype(np.str_)
    facts = _facts(frames[reference])
    for encoder, frame in per_clip.items():
        _same_clips(name, reference, ids, encoder, frame["id"].to_numpy().astype(np.str_))
        _same_facts(name, reference, facts, encoder, _facts(frames[encoder]))
    by_seed: dict[str, dict[str, Correct]] = {}
    pooled: dict[str, list[pl.DataFrame]] = {}
    for encoder, frame in per_clip.items():
        group = arm_of(encoder, params)
        by_seed.setdefault(group, {})[encoder] = frame["correct"].to_numpy()
        pooled.setdefault(group, []).append(frames[encoder])
    clusters = facts["source_id"].to_numpy().astype(np.str_)
    return View(
        name=name,
        domain=domain,
        protocol=key[0],
        pooling=key[1],
        variant=key[2],
        primary=primary,
        ids=ids,
        labels=facts["label"].to_numpy().astype(np.str_),
        cluster_N=np.unique(clusters, return_inverse=True)[1].astype(np.int64),
        correct={g: np.mean(list(seeds.values()), axis=0) for g, seeds in by_seed.items()},
        by_seed=by_seed,
        predictions={g: pl.concat(rows) for g, rows in pooled.items()},
        digests=digests,
    )


def arm_of(encoder: str, params: Params) -> str:
    """'adapted-0' -> 'adapted'; any other encoder is its own group."""
    arm, _, seed = encoder.rpartition("-")
    return arm if seed.isdigit() and arm in params.finetune.arms else encoder


def _facts(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("id", "source_id", "label").unique("id").sort("id")


def _same_content(name: str, digests: dict[str, str]) -> None:
    """One digest over ids and sounds for all encoders."""
    (a, reference), *others = digests.items()
    odd = next((e for e, d in others if d != reference), None)
    if odd:
        raise DataError(
            f"probe set {name}: {a} and {odd} were embedded from other sounds (clips {reference[:8]} and "
            f"{digests[odd][:8]})",
            "embed and probe both again on the same index",
        )


def _same_facts(name: str, a: str, a_facts: pl.DataFrame, b: str, b_facts: pl.DataFrame) -> None:
    if a_facts.equals(b_facts):
        return
    for mine, theirs in zip(a_facts.iter_rows(named=True), b_facts.iter_rows(named=True), strict=True):
        for what in ("label", "source_id"):
            if mine[what] != theirs[what]:
                raise DataError(
                    f"probe set {name}: clip {mine['id']} has the {what} '{mine[what]}' for {a} and '{theirs[what]}' "
                    f"for {b}",
                    "embed and probe both again on the same index",
                )


def _same_clips(name: str, a: str, a_ids: NDArray[np.str_], b: str, b_ids: NDArray[np.str_]) -> None:
    if np.array_equal(a_ids, b_ids):
        return
    odd = sorted(set(a_ids.tolist()) ^ set(b_ids.tolist()))
    raise DataError(
        f"probe set {name}: {a} was tested on {len(a_ids)} clips and {b} on {len(b_ids)}; {odd[0]} is in one only",
        "embed and probe both again on the same index",
    )
