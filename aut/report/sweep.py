"""Sweep: the same arm under several sets of overrides, compared clip by clip in one report.

In    working copies whose `probe` outputs are there, the first one the reference
Out   sweep.json, report.html
Why   variants are tested on the same clips, so their difference is paired; Holm over sets and variants. Variants that
      changed what is tested (other clips, another first protocol) cannot be compared, and are refused by name.
Run   aut sweep 'mixture.quota={speech: 0.6, environment: 0.2, music: 0.2}'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from aut import stats
from aut.config import Params
from aut.errors import DataError
from aut.files import write_bytes, write_json
from aut.layout import Layout
from aut.report.figures import forest
from aut.report.page import document, figure, section, table
from aut.report.predictions import View, load_views


@dataclass(frozen=True)
class Variant:
    """One set of overrides, and the working copy that ran with them."""

    name: str
    params: Params
    layout: Layout


def compare_variants(variants: Sequence[Variant]) -> dict[str, Any]:
    """Accuracy of the arm `compare.a` in each variant and its difference to the first, in points."""
    first = variants[0]
    views = {v.name: {name: _primary(v, name) for name in first.params.probe.sets} for v in variants}
    c = first.params.compare
    accuracies, differences = [], []
    for name, reference in views[first.name].items():
        for v in variants:
            view = views[v.name][name]
            _same(first.name, reference, v.name, view)
            one = stats.accuracy_interval(view.correct[c.a], view.cluster_N, c.level, c.resamples, first.params.seed)
            row = {"set": name, "variant": v.name, "accuracy": one.estimate, "low": one.low, "high": one.high}
            accuracies.append({k: round(100 * x, 2) if isinstance(x, float) else x for k, x in row.items()})
            if v is not first:
                differences.append(_difference(first, v.name, reference, view))
    adjusted = stats.holm([r["p"] for r in differences])
    return {
        "profile": first.params.profile,
        "arm": c.a,
        "level": c.level,
        "variants": {v.name: {d: float(x) for d, x in v.params.mixture.quota.items()} for v in variants},
        "accuracies": accuracies,
        "differences": [r | {"p_holm": float(p)} for r, p in zip(differences, adjusted, strict=True)],
    }


def write_sweep(found: dict[str, Any], folder: Path) -> None:
    """sweep.json and a page with a forest plot and both tables."""
    write_json(folder / "sweep.json", found)
    reference = next(iter(found["variants"]))
    note = (
        f"<p class='lead'>Arm {escape(found['arm'])}, each variant against <code>{escape(reference)}</code>: the same "
        f"clips, correctness averaged over seeds, {100 * found['level']:g} % intervals, whole recordings resampled, p "
        "corrected by Holm over this table.</p>"
    )
    number = {name: str(n) for n, name in enumerate(found["variants"])}
    domains = list(found["variants"][reference])
    quotas = ([number[n], n, *(f"{100 * q[d]:g} %" for d in domains)] for n, q in found["variants"].items())
    heads = ("set", "variant", "points", "interval", "p (Holm)", "mdd", "clips")
    rows = (
        [
            r["set"],
            r["a"],
            f"{r['diff']:+.2f}",
            _span(r, "+.2f"),
            f"{r['p_holm']:.2g}",
            f"{r['mdd']:.2f}",
            f"{r['clips']}",
        ]
        for r in found["differences"]
    )
    each = ([r["set"], r["variant"], f"{r['accuracy']:.2f}", _span(r, ".2f")] for r in found["accuracies"])
    drawn = [r | {"a": f"variant {number[r['a']]}", "b": f"variant {number[r['b']]}"} for r in found["differences"]]
    plot = figure(forest(drawn, "Differences between the variants, in points"))
    sections = [
        note,
        section("Differences", plot + table(heads, rows)),
        section("Accuracy", table(("set", "variant", "accuracy %", "interval"), each)),
        section("Variants and their mixtures", table(("number", "variant", *domains), quotas)),
    ]
    write_bytes(folder / "report.html", document(f"Sweep of the profile {found['profile']}", sections).encode())


def _difference(first: Variant, name: str, reference: View, view: View) -> dict[str, Any]:
    c = first.params.compare
    a_N, b_N = view.correct[c.a], reference.correct[c.a]
    d = stats.paired_difference(a_N, b_N, view.cluster_N, c.level, c.resamples, first.params.seed)
    mdd = stats.minimum_detectable(a_N, b_N, view.cluster_N, c.level, c.power)
    shares = {"diff": d.diff, "low": d.low, "high": d.high, "mdd": mdd}
    row: dict[str, Any] = {"set": view.name, "domain": view.domain, "a": name, "b": first.name, "p": d.p}
    return row | {k: round(100 * x, 2) for k, x in shares.items()} | {"clips": d.clips, "recordings": d.clusters}


def _primary(variant: Variant, name: str) -> View:
    return next(v for v in load_views(variant.params, variant.layout, name) if v.primary)


def _same(a: str, a_view: View, b: str, b_view: View) -> None:
    if a_view.described != b_view.described or not np.array_equal(a_view.ids, b_view.ids):
        raise DataError(
            f"{a_view.name}: '{a}' was tested on {len(a_view.ids)} clips ({a_view.described}) and '{b}' on "
            f"{len(b_view.ids)} ({b_view.described})",
            "sweep over what is trained, not over what is tested",
        )


def _span(r: dict[str, Any], form: str) -> str:
    return f"{r['low']:{form}} to {r['high']:{form}}"
