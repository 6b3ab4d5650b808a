"""Compare: what differs between the encoders, how sure that is, and whether each gate passed.

In    data/probe/<encoder>/<set>/predictions.parquet, data/screen, data/mixture/stats.json, models/encoders/
Out   reports/compare/{evidence.json, report.html, plots/}, reports/plots/compare.csv
Why   one paired test a set and rival, on correctness averaged over seeds, clustered on recordings, corrected by Holm;
      everything else (baselines, ablations, classes) stands beside it and is called what it is. Points are per cent.
Run   aut compare
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from aut import stats
from aut.config import Params, overrides_of
from aut.contracts import Tracker
from aut.errors import DataError, MissingInput
from aut.files import read_json, replacing, write_bytes, write_json
from aut.gates import evaluate
from aut.layout import Layout
from aut.report.page import write_report
from aut.report.predictions import View, arm_of, load_views

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHANGED_SHOWN = 20  # clips listed a set
CONFUSIONS_SHOWN = 8


def compare(params: Params, layout: Layout, track: Tracker) -> dict[str, float | int | str]:
    """Writes the evidence and its page; returns differences and verdicts as flat metrics.

    Raises DataError where two encoders were tested on different clips.
    """
    evidence = build_evidence(params, layout)
    with replacing(layout.evidence) as draft:
        write_json(draft / "evidence.json", evidence)
        write_report(evidence, draft)
    write_bytes(layout.plot("compare"), _plot_rows(evidence["table"]))
    track.artifact(layout.evidence / "evidence.json")
    track.artifact(layout.evidence / "report.html")
    metrics: dict[str, float | int | str] = {}
    for row in evidence["differences"]:
        name = f"{row['set']}.{row['a']}-{row['b']}"
        metrics |= {f"{name}.diff": row["diff"], f"{name}.low": row["low"], f"{name}.high": row["high"]}
    failed = [v["gate"] for v in evidence["verdicts"] if v["decides"] and not v["passed"]]
    return metrics | {"gates_failed": len(failed), "failed": ", ".join(failed)}


def build_evidence(params: Params, layout: Layout) -> dict[str, Any]:
    """Everything the report says, as JSON values; accuracies and differences in points."""
    flagged = flagged_clips(layout)
    views = [v for name in params.probe.sets for v in load_views(params, layout, name)]
    primary = [v for v in views if v.primary]
    differences = _corrected([row for v in primary for row in _differences(v, params, params.compare.against)])
    evidence: dict[str, Any] = {
        "profile": params.profile,
        "a": params.compare.a,
        "against": params.compare.against,
        "level": params.compare.level,
        "table": [row for v in views if v.layer is None for row in _table(v, params)],
        "layers": [row for v in views if v.layer is not None for row in _layer(v)],
        "differences": differences,
        "domains": list(_domains(differences, params)),
        "beats": [row for v in primary for row in _differences(v, params, params.compare.baselines)],
        "ablations": list(_ablations(views, flagged, params)),
        "classes": {v.name: found for v in primary if (found := _classes(v, params))},
        "leakage": _leakage(layout),
        "mixture": read_json(layout.mixture / "stats.json"),
        "training": {n: f for n in params.export.encoders if (f := _training(layout, n))},
        "speech_kept": list(_speech_kept(params, layout)),
        "parity": {name: _parity(layout, name) for name in params.export.encoders},
        "encoders": {v.name: v.digests for v in primary},
        "again": _again(params, layout),
    }
    told = evidence | {"differences": evidence["differences"] + evidence["beats"]}
    evidence["verdicts"] = [v.as_json() for v in evaluate(told, params.register_.gates, params.compare)]
    return evidence


def _table(view: View, params: Params) -> Iterator[dict[str, Any]]:
    c = params.compare
    for encoder, correct_N in view.correct.items():
        interval = stats.accuracy_interval(correct_N, view.cluster_N, c.level, c.resamples, params.seed)
        yield view.label | {
            "encoder": encoder,
            "accuracy": points(interval.estimate),
            "low": points(interval.low),
            "high": points(interval.high),
            "seeds": {name: points(float(x.mean())) for name, x in view.by_seed[encoder].items()},
        }


def _differences(view: View, params: Params, rivals: list[str]) -> Iterator[dict[str, Any]]:
    for rival in rivals:
        if rival in view.correct and params.compare.a in view.correct:
            yield view.label | _difference(view, params, rival)


def _difference(view: View, params: Params, rival: str) -> dict[str, Any]:
    """One paired comparison of `compare.a` with a rival, on the clips of the view."""
    c = params.compare
    a_N, b_N = view.correct[c.a], view.correct[rival]
    found = stats.paired_difference(a_N, b_N, view.cluster_N, c.level, c.resamples, params.seed)
    return {
        "a": c.a,
        "b": rival,
        "diff": points(found.diff),
        "low": points(found.low),
        "high": points(found.high),
        "p": found.p,
        "se": points(found.se),
        "h": round(found.h, 4),
        "mdd": points(stats.minimum_detectable(a_N, b_N, view.cluster_N, c.level, c.power)),
        "clips": len(a_N),
        "recordings": len(set(view.cluster_N.tolist())),
        "seeds": len(view.by_seed[c.a]),
        "seed_diffs": _seed_differences(view, c.a, rival),
        "mcnemar": _mcnemar(view, c.a, rival),
        "resampled": _resampled(view, params, rival),
    }


def _seed_differences(view: View, a: str, b: str) -> list[float]:
    """a - b of each fine-tune seed; b's own seed where it has one."""
    mine, theirs = view.by_seed[a], view.by_seed[b]
    pairs = zip(
        mine.values(), theirs.values() if len(theirs) == len(mine) else [view.correct[b]] * len(mine), strict=True
    )
    return [points(float(x.mean() - y.mean())) for x, y in pairs]


def _mcnemar(view: View, a: str, b: str) -> dict[str, float]:
    """The mid-p and the exact test on the first seed's predictions: they count whole clips, not shares of seeds."""
    first = [next(iter(view.by_seed[x].values())) >= 0.5 for x in (a, b)]
    test = stats.mcnemar(first[0], first[1])
    return {"mid_p": test.mid_p, "exact_p": test.exact_p, "gained": test.only_a, "lost": test.only_b}


def _resampled(view: View, params: Params, rival: str) -> dict[str, float] | None:
    """The corrected resampled t-test over random divisions; None where the set was divided once only.

    Averaged over fine-tune seeds: it asks whether another division of the set would say the same.
    """
    protocol = params.probe.protocols[view.protocol]
    a, b = view.divisions(params.compare.a), view.divisions(rival)
    if len({repeat for repeat, _ in a}) < 2 or a.keys() != b.keys():
        return None
    fraction, folds = protocol.stratified_fraction, protocol.folds
    if fraction is None:
        fraction = 1.0 / int(folds)  # only an integer number of folds is ever repeated
    t, p = stats.corrected_resampled_t([a[k] - b[k] for k in a], fraction / (1.0 - fraction))
    return {"t": round(t, 4), "p": p, "divisions": len(a)} if math.isfinite(t) else None


def _domains(rows: list[dict[str, Any]], params: Params) -> Iterator[dict[str, Any]]:
    """Mean difference of each domain's sets, all counting alike; sets of two corpora share no clip, so variances add.

    Sets of one `dataset` may be two editions of a corpus (Speech Commands') and share clips: their standard errors add,
    which no correlation can pass.
    """
    z = NormalDist().inv_cdf(0.5 + params.compare.level / 2)
    for domain, rival in dict.fromkeys((r["domain"], r["b"]) for r in rows):
        of = [r for r in rows if (r["domain"], r["b"]) == (domain, rival)]
        mean = sum(r["diff"] for r in of) / len(of)
        by_corpus: dict[str, float] = defaultdict(float)
        for r in of:
            by_corpus[params.sources[r["set"]].dataset] += r["se"]
        half = z * math.sqrt(sum(se**2 for se in by_corpus.values())) / len(of)
        low, high = (of[0]["low"], of[0]["high"]) if len(of) == 1 else (mean - half, mean + half)
        yield {
            "domain": domain,
            "sets": [r["set"] for r in of],
            "a": of[0]["a"],
            "b": rival,
            "diff": round(mean, 2),
            "low": round(low, 2),
            "high": round(high, 2),
        }


def _layer(view: View) -> Iterator[dict[str, Any]]:
    """A point of each encoder's layer curve."""
    for encoder, correct_N in view.correct.items():
        yield view.label | {"layer": view.layer, "encoder": encoder, "accuracy": points(float(correct_N.mean()))}


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm over the whole family of sets and rivals."""
    adjusted = stats.holm([r["p"] for r in rows])
    return [r | {"p_holm": float(p)} for r, p in zip(rows, adjusted, strict=True)]


def _ablations(views: list[View], flagged: dict[str, set[str]], params: Params) -> Iterator[dict[str, Any]]:
    """The same comparison where pooling, classifier or protocol differ, and without the flagged test clips."""
    for view in views:
        if view.layer is not None:  # drawn as curves
            continue
        if not view.primary:
            yield from (
                {**row, "ablation": view.described} for row in _differences(view, params, params.compare.against)
            )
        elif flagged.get(view.name):
            kept = view.without(flagged[view.name])
            what = f"without {len(view.ids) - len(kept.ids)} flagged clips"
            if len(kept.ids):
                yield from ({**row, "ablation": what} for row in _differences(kept, params, params.compare.against))
            else:
                yield view.label | {"ablation": "every clip of this set is flagged: nothing is left to compare"}


def _classes(view: View, params: Params) -> dict[str, Any]:
    """Per class accuracy of a and the first rival, what a confuses most, which clips changed."""
    a = params.compare.a
    rival = next((b for b in params.compare.against if b in view.correct), None)
    if rival is None or a not in view.correct:
        return {}
    a_N, b_N = view.correct[a], view.correct[rival]
    change = a_N - b_N
    return {
        "rival": rival,
        "accuracy": {
            label: {a: points(float(a_N[m].mean())), rival: points(float(b_N[m].mean())), "clips": int(m.sum())}
            for label, m in ((x, view.labels == x) for x in sorted(set(view.labels.tolist())))
        },
        "confusions": view.confusions(a, CONFUSIONS_SHOWN),
        "gained": _most(view.ids, change, CHANGED_SHOWN),
        "lost": _most(view.ids, -change, CHANGED_SHOWN),
    }


def _most(ids: NDArray[np.str_], gain_N: NDArray[np.float64], count: int) -> list[str]:
    order = sorted(range(len(ids)), key=lambda i: (-gain_N[i], ids[i]))[:count]
    return [str(ids[i]) for i in order if gain_N[i] > 0]


def flagged_clips(layout: Layout) -> dict[str, set[str]]:
    """Probe set -> ids of its clips that the screen found in the training pool."""
    import polars as pl

    path = layout.screen / "flagged.parquet"
    if not path.exists():
        raise MissingInput(f"{path} is missing", "aut screen")
    frame = pl.read_parquet(path, columns=["probe_set", "probe_id"]).unique()
    found: dict[str, set[str]] = {}
    for name, clip in frame.iter_rows():
        found.setdefault(name, set()).add(clip)
    return found


def _leakage(layout: Layout) -> dict[str, Any]:
    report: dict[str, Any] = read_json(layout.screen / "report.json")
    return report


def _training(layout: Layout, encoder: str) -> dict[str, Any]:
    """Steps, clips, valid seconds of an encoder that was trained here; empty for the others."""
    path = layout.encoder(encoder) / "training.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found if "steps" in found else {}


def _speech_kept(params: Params, layout: Layout) -> Iterator[dict[str, Any]]:
    """Word error rate of each arm and of its base on the same held-out clips, errors averaged over seeds, in points."""
    by_arm: dict[str, list[list[dict[str, Any]]]] = {}
    for encoder in params.export.encoders:
        if (path := layout.encoder(encoder) / "speech.json").exists():
            by_arm.setdefault(arm_of(encoder, params), []).append(read_json(path)["clips"])
    for arm, seeds in by_arm.items():
        clips = seeds[0]
        if any([c["id"] for c in other] != [c["id"] for c in clips] for other in seeds):
            raise DataError(f"the seeds of {arm} transcribed different clips", "run `aut finetune` for each again")
        recordings = [c["source_id"] for c in clips]
        if len(set(recordings)) < 2:
            continue  # one recording has no spread
        yield {"arm": arm, "clips": len(clips), "recordings": len(set(recordings))} | _rates(params, seeds, recordings)


def _rates(params: Params, seeds: list[list[dict[str, Any]]], recordings: list[str]) -> dict[str, Any]:
    c = params.compare
    words = [clip["words"] for clip in seeds[0]]
    tuned, base = (
        [sum(clip[who] for clip in same) / len(same) for same in zip(*seeds, strict=True)] for who in ("tuned", "base")
    )
    change = [a - b for a, b in zip(tuned, base, strict=True)]
    found: dict[str, Any] = {"words": sum(words), "largest": points(_largest(recordings, (base, tuned)))}
    for name, counts in (("base", base), ("wer", tuned), ("diff", change)):
        rate = stats.rate_interval(counts, words, recordings, c.level, c.resamples, params.seed)
        floor = -math.inf if name == "diff" else 0.0
        found |= {name: points(rate.estimate), f"{name}_low": points(max(floor, rate.low))}
        found |= {f"{name}_high": points(rate.high)}
    return found


def _largest(recordings: list[str], counts: Sequence[Sequence[float]]) -> float:
    """The largest share that one recording has of an encoder's errors: a large one makes the interval too narrow."""
    shares = [0.0]
    for errors in counts:
        by: dict[str, float] = {}
        for recording, n in zip(recordings, errors, strict=True):
            by[recording] = by.get(recording, 0.0) + n
        shares.append(max(by.values()) / (sum(by.values()) or 1.0))
    return max(shares)


def _again(params: Params, layout: Layout) -> dict[str, Any]:
    """What `aut run` needs to make this evidence again; overrides None where no conf says what the profile is."""
    conf = layout.root / "conf"
    known = (conf / "profile" / f"{params.profile}.yaml").is_file()
    corpora = any(s.dataset != "toy" for s in params.sources.values())
    return {"overrides": overrides_of(params, conf) if known else None, "audio": corpora}


def _parity(layout: Layout, encoder: str) -> dict[str, Any]:
    path = layout.encoder(encoder) / "parity.json"
    if not path.exists():
        raise DataError(f"encoder {encoder} has no parity.json", f"aut export {encoder}")
    found: dict[str, Any] = read_json(path)
    return found


def _plot_rows(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["encoder", "accuracy", "low", "high"])
    writer.writerows([f"{r['set']}: {r['encoder']}", r["accuracy"], r["low"], r["high"]] for r in rows if r["primary"])
    return out.getvalue().encode()


def points(share: float) -> float:
    """A share as points (per cent), to a hundredth: finer digits differ between machines."""
    return round(100.0 * share, 2)
