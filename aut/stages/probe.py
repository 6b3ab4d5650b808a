"""Probe: linear and nearest-neighbour classifiers on one encoder's vectors of one set, every prediction kept.

In    data/embeddings/<encoder>/<set>/{embeddings.safetensors, clips.parquet}
Out   data/probe/<encoder>/<set>/{predictions.parquet, scores.json, head.safetensors, head.json}
Why   predictions and not accuracies are the result: every later test is paired by clip. Nothing is chosen on a
      test part. The head serves: it is fitted on all clips, so its own accuracy is not reported anywhere.
Run   aut probe adapted-0 toy_sounds_probe
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.config import Params, Probe, Protocol
from aut.contracts import Tracker
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import replacing, write_bytes, write_json
from aut.layout import Layout
from aut.probes.fitting import Fit, Head, linear_adam, logistic, nearest
from aut.probes.splits import Division, divide

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

KEYS = ("protocol", "pooling", "variant")


@dataclass(frozen=True)
class ProbeSet:
    """Clips of a set under one protocol: kept [N] row numbers of the embeddings, and facts of those rows."""

    name: str
    kept: NDArray[np.int64]
    ids: NDArray[np.str_]
    sources: NDArray[np.str_]
    split: NDArray[np.str_]
    labels: list[str]
    y_N: NDArray[np.int64]
    group_N: NDArray[np.int64]


def probe(params: Params, layout: Layout, track: Tracker, encoder: str, probe_set: str) -> dict[str, float | int | str]:
    """Fits every protocol of the set on every pooling; returns the first one's accuracy.

    MissingInput: not embedded. DataError: labels missing, a vector that is not finite, a class that is tested but
    never trained on, or that a label mapping has and no test part. ConfigError: the set has no such folds, labels or
    exclusion list.
    """
    folder = layout.embeddings(encoder, probe_set)
    vectors, clips = read_embeddings(folder, probe_set, params.embed.poolings)
    rows: list[pl.DataFrame] = []
    scores: list[dict[str, Any]] = []
    head: tuple[Head, dict[str, Any]] | None = None
    left: list[float] = []  # largest gradient of each fit; not written, as its digits differ between machines
    for name in params.probe.sets[probe_set]:
        protocol = params.probe.protocols[name]
        chosen = select(clips, protocol, params, layout, probe_set)
        divisions = divide(
            protocol,
            chosen.split,
            chosen.y_N,
            chosen.group_N,
            chosen.labels,
            f"{probe_set} ({name})",
            params.probe.seeds,
        )
        if protocol.labels is not None:
            _check_scheme(chosen, divisions, protocol.labels, params.sources[probe_set].dataset)
        for pooling, values in vectors.items():
            x_ND = values[chosen.kept]
            fitted = fit_all(x_ND, chosen, divisions, protocol, params.probe, whole=head is None)
            for variant, (fits, found) in fitted.items():
                keys = dict(zip(KEYS, (name, pooling, variant), strict=True))
                rows.append(_rows(chosen, fits, keys))
                left += [f.gradient for f in fits if f.gradient is not None]
                scores.append(keys | score(rows[-1]) | _chosen_c(fits))
                if found is not None:
                    head = found, {"labels": chosen.labels, "set": probe_set, "pooling": pooling, "c": found.c}
    if head is None:
        raise ConfigError(f"probe.sets.{probe_set} names no protocol", "name one, e.g. grouped")
    frame = _concat(rows)
    domain = str(params.sources[probe_set].domain)
    about: dict[str, Any] = {"set": probe_set, "domain": domain, "encoder": encoder}
    about |= {"clips": clips.height, "recordings": clips["source_id"].n_unique()}
    with replacing(layout.probe(encoder, probe_set)) as draft:
        frame.write_parquet(draft / "predictions.parquet")
        write_json(draft / "scores.json", about | {"scores": scores})
        _write_head(draft, *head)
    track.metrics({f"{s['protocol']}.{s['pooling']}.{s['variant']}": s["accuracy"] for s in scores})
    if left:
        track.metrics({"largest_gradient": max(left)})  # above probe.tolerance where float32 went no further
    first = scores[0]
    return {"accuracy": first["accuracy"], "clips": first["clips"], "recordings": first["recordings"]}


def read_embeddings(
    folder: Path, name: str, poolings: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], pl.DataFrame]:
    """Vectors [N, D] of each pooling in the order given, its layers after it, and the clips of the rows.

    DataError names a clip whose vector is not finite, or the two counts that disagree.
    """
    import polars as pl
    from safetensors.numpy import load_file

    file = folder / "embeddings.safetensors"
    if not file.is_file():
        raise MissingInput(f"{file} is missing", f"aut embed {folder.parent.name} {name}")
    vectors, clips = load_file(file), pl.read_parquet(folder / "clips.parquet")
    for pooling, values in vectors.items():
        if len(values) != clips.height:
            raise DataError(
                f"{file}: {len(values)} '{pooling}' vectors for {clips.height} clips", "embed the set again"
            )
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            clip = clips["id"][int(np.argmin(finite))]
            raise DataError(f"the '{pooling}' embedding of clip {clip} is not finite", "check the encoder's weights")
    place = {pooling: n for n, pooling in enumerate(poolings)}
    of = {k: place.get(k.partition(".layer")[0], len(place)) for k in vectors}  # 'valid.layer03' is a pooling of valid
    return {k: vectors[k] for k in sorted(vectors, key=lambda k: (of[k], k))}, clips


def select(clips: pl.DataFrame, protocol: Protocol, params: Params, layout: Layout, name: str) -> ProbeSet:
    """The clips a protocol uses: excluded ones left out, labels mapped, classes and recordings numbered."""
    ids = clips["id"].to_list()
    given = clips["label"].to_list()
    labels = relabelled(given, protocol.labels, params.sources[name].dataset)
    out = excluded(protocol.exclude, name, params.sources[name].dataset, layout)
    kept = [i for i, clip in enumerate(ids) if clip not in out]
    if not kept:
        raise DataError(f"{name}: every clip is excluded by '{protocol.exclude}'", "check the exclusion list")
    unlabelled = [i for i in kept if not given[i]]
    if unlabelled:
        raise DataError(
            f"{name}: clip {ids[unlabelled[0]]} has no label ({len(unlabelled)} of {len(kept)} clips)",
            "a probe set needs a label on every clip: fill its index's column `label`",
        )
    kept = [i for i in kept if labels[i]]  # a mapping may leave classes out, never a clip without one
    names, y_N = np.unique(np.array([labels[i] for i in kept], np.str_), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{name} has {len(names)} class: nothing to tell apart", "give its clips labels")
    part = clips[kept]
    # A clip without a recording of its own is one.
    sources = np.array([s or i for s, i in part.select("source_id", "id").iter_rows()], np.str_)
    return ProbeSet(
        name=name,
        kept=np.array(kept),
        ids=part["id"].to_numpy().astype(np.str_),
        sources=sources,
        split=part["split"].fill_null("").to_numpy().astype(np.str_),
        labels=names.tolist(),
        y_N=y_N.astype(np.int64),
        group_N=np.unique(sources, return_inverse=True)[1].astype(np.int64),
    )


def relabelled(labels: list[str | None], mapping: str | None, dataset: str) -> list[str | None]:
    """Labels through `aut.datasets.<dataset>.labels(mapping)`, a mapping; a label not in it is left out (None)."""
    if mapping is None:
        return labels
    classes: Mapping[str, str] = _offered(dataset, "labels", mapping)
    return [None if label is None else classes.get(label) for label in labels]


def _check_scheme(chosen: ProbeSet, divisions: list[Division], mapping: str, dataset: str) -> None:
    """A scheme is known by its number of classes: an accuracy over fewer would pass for that of all."""
    classes: Mapping[str, str] = _offered(dataset, "labels", mapping)
    tested = {chosen.labels[k] for d in divisions for k in np.unique(chosen.y_N[d.test])}
    for name in sorted(set(classes.values()) - tested):
        where = "no test clip" if name in chosen.labels else "no clip"
        raise DataError(
            f"{chosen.name}: the mapping '{mapping}' has the class '{name}', which {where} has",
            "read the set with the options that bring it (`aut sources check`), or use a protocol without the mapping",
        )


def excluded(name: str | None, probe_set: str, dataset: str, layout: Layout) -> set[str]:
    """Ids left out: a list the dataset knows (`excluded(name)`, clip keys), or a file of ids or keys, one a line."""
    if name is None:
        return set()
    if name.endswith(".txt"):
        path = layout.root / name
        if not path.is_file():
            raise MissingInput(f"{path} is missing", "it lists the clips to leave out, one id a line")
        lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
        keys: Collection[str] = [line for line in lines if line]
    else:
        keys = _offered(dataset, "excluded", name)
    return {k if k.startswith(f"{probe_set}/") else f"{probe_set}/{k}" for k in keys}


def fit_all(
    x_ND: NDArray[np.float32],
    chosen: ProbeSet,
    divisions: list[Division],
    protocol: Protocol,
    settings: Probe,
    whole: bool,
) -> dict[str, tuple[list[Fit], Head | None]]:
    """Variant -> fits, and with `whole` the head on all clips (linear only)."""
    classes = len(chosen.labels)
    if protocol.solver == "adam":
        paired = protocol.stratified_fraction is not None
        linear = linear_adam(x_ND, chosen.y_N, divisions, classes, settings, whole, paired)
    else:
        linear = logistic(x_ND, chosen.y_N, chosen.group_N, divisions, classes, settings, whole)
    found = {"linear": linear}
    if settings.knn:
        found["knn"] = nearest(x_ND, chosen.y_N, divisions, classes, settings.knn), None
    return found


def score(predictions: pl.DataFrame, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Accuracy of predictions of one protocol, pooling and variant, `left_out` clips not counted.

    Also the accuracy of each fit, the clips and recordings tested, and how far fits spread. DataError: none is left.
    """
    import polars as pl

    kept = predictions.filter(~pl.col("id").is_in(list(left_out))) if left_out else predictions
    if not kept.height:
        raise DataError("every test clip is left out", "the probe set is wholly flagged: nothing can be scored")
    right = kept.with_columns(right=(pl.col("label") == pl.col("predicted")).cast(pl.Float64))
    fits = right.group_by("repeat", "seed", "fold").agg(pl.col("right").mean()).sort("repeat", "seed", "fold")
    rounds = right.group_by("repeat", "seed").agg(pl.col("right").mean()).sort("repeat", "seed")["right"]
    return {
        "accuracy": round(float(rounds.mean()), 6),  # type: ignore[arg-type] # of floats, never empty
        "spread": round(float(rounds.std()), 6) if len(rounds) > 1 else 0.0,  # type: ignore[arg-type]
        "folds": [[fold, int(repeat), int(seed), round(value, 6)] for repeat, seed, fold, value in fits.iter_rows()],
        "clips": kept["id"].n_unique(),
        "recordings": kept["source_id"].n_unique(),
    }


def _offered(dataset: str, function: str, name: str) -> Any:
    """What a dataset's module knows under a name; ConfigError where it knows none."""
    from aut.datasets import open_dataset

    offer = getattr(open_dataset(dataset), function, None)
    if offer is None:
        raise ConfigError(
            f"dataset '{dataset}' has no {function}('{name}')",
            f"remove it from the protocol, or add {function}() there",
        )
    return offer(name)


def _rows(chosen: ProbeSet, fits: list[Fit], keys: dict[str, str]) -> pl.DataFrame:
    import polars as pl

    labels = np.array(chosen.labels)
    test = np.concatenate([f.division.test for f in fits])
    lengths = [len(f.division.test) for f in fits]
    return pl.DataFrame(
        {
            **{k: np.repeat(v, len(test)) for k, v in keys.items()},
            "seed": np.repeat([f.seed for f in fits], lengths).astype(np.int32),
            "repeat": np.repeat([f.division.repeat for f in fits], lengths).astype(np.int32),
            "fold": np.repeat([f.division.fold for f in fits], lengths),
            "id": chosen.ids[test],
            "source_id": chosen.sources[test],
            "label": labels[chosen.y_N[test]],
            "predicted": labels[np.concatenate([f.predicted for f in fits])],
        }
    )


def _concat(rows: list[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    return pl.concat(rows)


def _chosen_c(fits: list[Fit]) -> dict[str, Any]:
    values = [f.c for f in fits if f.c is not None]
    return {"c": values} if values else {}


def _write_head(folder: Path, head: Head, about: dict[str, Any]) -> None:
    from safetensors.numpy import save

    tensors = {k: np.ascontiguousarray(getattr(head, k), np.float32) for k in ("weight", "bias", "mean", "scale")}
    write_bytes(folder / "head.safetensors", save(tensors))
    write_json(folder / "head.json", about)
