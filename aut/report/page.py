"""The report: one self-contained page, verdict first. No script, no outside request; prints, and fits a phone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from aut.files import write_bytes
from aut.report.figures import bars, curves, forest

Row = dict[str, Any]
FEW, FEW_PERCENT = 30, 20  # recordings; of the errors in one: beyond, the interval of a word error rate is not trusted


def write_report(evidence: dict[str, Any], folder: Path) -> None:
    """report.html and plots/*.svg for one evidence; the same evidence is the same bytes."""
    differences = forest(evidence["differences"], "Differences in points, with intervals")
    sections = [
        _verdicts(evidence),
        section("Differences", _all_differences(evidence, differences)),
        section("Every encoder", _accuracies(evidence)),
        *([section("Layer by layer", _layers(evidence["layers"], evidence["a"]))] if evidence["layers"] else []),
        section("Against the baselines", _baselines(evidence["beats"])),
        section("What would make it vanish", _ablations(evidence)),
        section("Class by class", "".join(_classes(n, c, evidence["a"]) for n, c in evidence["classes"].items())),
        section("The training mixture", _mixture(evidence["mixture"])),
        section("What each arm was trained on", _training(evidence["training"])),
        *([section("Speech kept", _speech_kept(evidence))] if evidence["speech_kept"] else []),
        section("Leakage", _leakage(evidence["leakage"])),
        section("Parity of the exported encoders", _parity(evidence["parity"])),
        section("Digests and how to reproduce", _reproduce(evidence)),
    ]
    title = f"Evidence: {evidence['a']} against {' and '.join(evidence['against'])}"
    write_bytes(folder / "report.html", document(title, sections).encode())
    write_bytes(folder / "plots/differences.svg", _standalone(differences, style()).encode())


def style() -> str:
    return resources.files("aut.report").joinpath("page.css").read_text()


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page around its sections."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{style()}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _verdicts(evidence: Row) -> str:
    deciding = [v for v in evidence["verdicts"] if v["decides"]]
    failed = sum(not v["passed"] for v in deciding)
    head = "Every gate passed." if not failed else f"{failed} of {len(deciding)} gates failed."
    rows = "".join(_verdict(v) for v in evidence["verdicts"])
    return (
        f"<p class='lead'>{head} Profile <code>{escape(evidence['profile'])}</code>.</p><ul class='gates'>{rows}</ul>"
    )


def _verdict(v: Row) -> str:
    """A gate passes or fails; a finding is told and decides nothing."""
    word = ("pass" if v["passed"] else "FAIL") if v["decides"] else ("yes" if v["passed"] else "no")
    kind = "" if not v["decides"] else "pass" if v["passed"] else "fail"
    return f"<li class='{kind}'><strong>{word}</strong> {escape(v['gate'])}: {escape(v['detail'])}</li>"


def _all_differences(evidence: Row, plot: str) -> str:
    """Plot, what it shows, the table, and by domain where one has several sets."""
    body = figure(plot) + _difference_note(evidence) + _differences(evidence["differences"])
    several = [r for r in evidence["domains"] if len(r["sets"]) > 1]
    if not several:
        return body
    heads = ("domain", "sets", "difference", "points", "interval")
    cells = ([r["domain"], ", ".join(r["sets"]), *_difference_cells(r | {"set": ""})[2:]] for r in several)
    return body + "<h3>By domain, each set counting alike</h3>" + table(heads, cells)


def _difference_note(evidence: Row) -> str:
    level = f"{100 * evidence['level']:g}"
    return (
        f"<p>Points of accuracy, {level} % intervals, on correctness averaged over seeds, whole recordings resampled. "
        "p is two-sided; p (Holm) is corrected over this table. The grey bar is the minimum detectable difference: "
        "a true difference inside it would likely be missed with these clips. h is Cohen's effect size: 0.2 is small, "
        "0.5 medium, 0.8 large. McNemar's test is of the first seed alone and takes clips for independent.</p>"
    )


def _differences(rows: Sequence[Row]) -> str:
    counts = ("mdd", "h", "clips", "recordings", "seeds", "per seed", "McNemar mid-p (exact), gained / lost")
    heads = ("set", "domain", "difference", "points", "interval", "p", "p (Holm)", *counts)
    divided = any(r["resampled"] for r in rows)
    again = ("p over divisions",) if divided else ()
    cells = ([*_difference_cells(r), *_test_cells(r), *([_again(r)] if divided else [])] for r in rows)
    return table((*heads, *again), cells)


def _difference_cells(r: Row) -> list[str]:
    return [r["set"], r["domain"], f"{r['a']} - {r['b']}", f"{r['diff']:+.2f}", f"{r['low']:+.2f} to {r['high']:+.2f}"]


def _test_cells(r: Row) -> list[str]:
    seeds = ", ".join(f"{d:+.1f}" for d in r["seed_diffs"])
    test = r["mcnemar"]
    return [
        f"{r['p']:.2g}",
        f"{r['p_holm']:.2g}",
        f"{r['mdd']:.2f}",
        f"{r['h']:+.2f}",
        str(r["clips"]),
        str(r["recordings"]),
        str(r["seeds"]),
        seeds,
        f"{test['mid_p']:.2g} ({test['exact_p']:.2g}), {test['gained']:g} / {test['lost']:g}",
    ]


def _accuracies(evidence: Row) -> str:
    heads = ("set", "protocol", "pooling", "classifier", "encoder", "accuracy %", "interval", "each seed")
    return table(
        heads,
        (
            [
                r["set"],
                r["protocol"],
                r["pooling"],
                r["variant"],
                r["encoder"],
                f"{r['accuracy']:.2f}",
                f"{r['low']:.2f} to {r['high']:.2f}",
                ", ".join(f"{v:.1f}" for v in r["seeds"].values()),
            ]
            for r in evidence["table"]
        ),
    )


def _layers(rows: Sequence[Row], a: str) -> str:
    """A curve an encoder, one figure for each set, protocol and classifier, and the same numbers as a table."""
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for r in sorted(rows, key=lambda r: r["encoder"] != a):
        pooling = r["pooling"].partition(".layer")[0]
        name = f"{r['set']}: {r['protocol']}, {pooling} pooling, {r['variant']}"
        figures.setdefault(name, {}).setdefault(r["encoder"], {})[r["layer"]] = r["accuracy"]
    return "".join(
        f"<h3>{escape(n)}</h3>" + figure(curves(s, f"{n}, accuracy by layer")) + _by_layer(s)
        for n, s in figures.items()
    )


def _by_layer(series: dict[str, dict[int, float]]) -> str:
    layers = sorted({n for points in series.values() for n in points})
    cells = ([e, *(f"{points[n]:.1f}" if n in points else "" for n in layers)] for e, points in series.items())
    return _details("the numbers", table(("encoder, % by layer", *map(str, layers)), cells))


def _baselines(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p>No baseline was asked for.</p>"
    lost = [f"{r['b']} on {r['set']}" for r in rows if r["low"] <= 0]
    told = "It beats every baseline." if not lost else f"It does not beat, beyond chance: {', '.join(lost)}."
    heads = ("set", "domain", "difference", "points", "interval", "beaten")
    cells = ([*_difference_cells(r), "yes" if r["low"] > 0 else "NO"] for r in rows)
    return f"<p>{escape(told)} Not corrected for the number of baselines.</p>" + table(heads, cells)


def _ablations(evidence: Row) -> str:
    """Rows as they are; p of the corrected resampled t-test where a protocol divides the set several times."""
    rows = evidence["ablations"]
    heads = ("ablation", "set", "domain", "difference", "points", "interval", "p over divisions")
    cells = (
        [r["ablation"], *([*_difference_cells(r), _again(r)] if "diff" in r else [r["set"], r["domain"], *[""] * 4])]
        for r in rows
    )
    return _not_asked(evidence) + table(heads, cells)


def _not_asked(evidence: Row) -> str:
    """What the params left out, so that nobody takes its absence for agreement."""
    decided = {r["pooling"] for r in evidence["differences"]}
    if any(r["pooling"] not in decided for r in evidence["ablations"]) or len(decided) != 1:
        return ""
    other = {"valid": "padded", "padded": "valid"}.get(*decided)
    return f"<p>Not asked for: {other} pooling (<code>embed.poolings: [valid, padded]</code>).</p>" if other else ""


def _again(r: Row) -> str:
    return f"{r['resampled']['p']:.2g} ({r['resampled']['divisions']} divisions)" if r["resampled"] else ""


def _classes(name: str, facts: Row, a: str) -> str:
    rival = facts["rival"]
    rows = (
        [c, f"{v[a]:.1f}", f"{v[rival]:.1f}", f"{v[a] - v[rival]:+.1f}", str(v["clips"])]
        for c, v in sorted(facts["accuracy"].items(), key=lambda item: (item[1][rival] - item[1][a], item[0]))
    )
    confused = "; ".join(f"{c['label']} taken for {c['predicted']} {c['percent']:g} %" for c in facts["confusions"])
    changed = "".join(
        f"<details><summary>{what} against {escape(rival)} (first {len(facts[key])})</summary>"
        f"<p>{escape(', '.join(facts[key]))}</p></details>"
        for key, what in (("gained", "clips gained"), ("lost", "clips lost"))
        if facts[key]
    )
    return (
        f"<h3>{escape(name)}</h3>"
        + table(("class", f"{a} %", f"{rival} %", "difference", "clips"), rows)
        + f"<p>Most confused by {escape(a)}: {escape(confused) or 'nothing'}.</p>{changed}"
    )


def _mixture(facts: Row) -> str:
    told = f"<p>{facts['rows']:,} rows an epoch, digest <code>{escape(facts['digest'])}</code>.</p>"
    return told + "".join(_composition(facts, kind) for kind in KINDS)


KINDS = {"domain": "domain", "source": "source", "licence": "licence", "text_origin": "text from", "duration": "length"}


def _composition(facts: Row, kind: str) -> str:
    """Distinct clips and hours, and share of the epoch's rows, by one property: lengths ascend, the rest by share."""
    entries: dict[str, Row] = facts[kind]
    order = {n: float(n.split()[1]) if kind == "duration" else -float(v["share"]) for n, v in entries.items()}
    names = sorted(entries, key=lambda n: (order[n], n.startswith("over"), n))
    plot = bars({n: float(entries[n]["share"]) for n in names}, f"Share of rows by {KINDS[kind]}")
    facts_of = ((n, entries[n]) for n in names)
    rows = ([n, f"{v['clips']:,}", f"{v['hours']:.2f}", f"{100 * v['share']:.2f} %"] for n, v in facts_of)
    return figure(plot) + table((KINDS[kind], "clips", "hours", "share of rows"), rows)


def _training(facts: dict[str, Row]) -> str:
    """What each arm was given: the control must equal the adapted arm in steps and valid seconds."""
    heads = ("encoder", "steps", "clips", "valid audio, s", "target tokens", "final loss")
    return table(
        heads,
        (
            [
                n,
                str(v["steps"]),
                f"{v['clips']:,}",
                f"{v['valid_seconds']:,.1f}",
                f"{v['tokens']:,}",
                f"{v['loss']:.3f}",
            ]
            for n, v in facts.items()
        ),
    )


def _speech_kept(evidence: Row) -> str:
    """Word error rates before the decoder is dropped: less is better, so a difference above zero is a loss."""
    counts = ("words", "clips", "recordings", "one recording's errors, %")
    heads = ("arm", "base %", "interval", "arm %", "interval", "arm - base", "interval", *counts)
    rows = (
        [r["arm"]]
        + [told for name in ("base", "wer") for told in (f"{r[name]:.2f}", _span(r, name, ".2f"))]
        + [f"{r['diff']:+.2f}", _span(r, "diff", "+.2f")]
        + [*(f"{r[name]:,}" for name in ("words", "clips", "recordings")), f"{r['largest']:.0f}"]
        for r in evidence["speech_kept"]
    )
    return (
        "<p>Word error rate, greedy, on speech held out of the fine-tune, with the decoder that is dropped afterwards; "
        f"{100 * evidence['level']:g} % intervals, whole recordings resampled. Above zero, speech was lost."
        f"{_doubt(evidence)}</p>" + table(heads, rows)
    )


def _doubt(evidence: Row) -> str:
    """Few recordings, or one with most errors: a resample without it says too little of what others would do."""
    doubtful = [r["arm"] for r in evidence["speech_kept"] if r["largest"] > FEW_PERCENT or r["recordings"] < FEW]
    if not doubtful:
        return ""
    return (
        f" <strong>Too narrow for {escape(', '.join(doubtful))}</strong>: under {FEW} recordings, or one with over "
        f"{FEW_PERCENT} % of the errors; such an interval held what it should hold 80 to 90 times of a hundred."
    )


def _span(r: Row, name: str, form: str) -> str:
    return f"{r[f'{name}_low']:{form}} to {r[f'{name}_high']:{form}}"


def _leakage(report: Row) -> str:
    heads = ("domain", "training clips", "found in a probe set", "share")
    rows = (
        [d, f"{v['pool']:,}", f"{v['flagged']:,}", f"{100 * v['fraction']:.3f} %"] for d, v in report["domains"].items()
    )
    return table(heads, rows)


def _parity(rows: dict[str, Row]) -> str:
    heads = ("encoder", "worst difference to transformers", "allowed", "passed", "drop-in loads")
    return table(
        heads,
        (
            [n, f"{v['max_error']:.2g}", f"{v['atol']:.2g}", _yes(v["passed"]), _yes(v["drop_in"])]
            if v["passed"] is not None
            else [n, "no counterpart there", "", "does not apply", "does not apply"]
            for n, v in rows.items()
        ),
    )


def _reproduce(evidence: Row) -> str:
    rows = sorted({(e, d) for by in evidence["encoders"].values() for e, d in by.items()})
    return (
        "<p>The tags of the MLflow run and of the model version name the commit. At that commit:</p>"
        f"<pre>{escape(commands(evidence))}</pre>"
        + table(("encoder", "digest of weights and preprocessing"), ([e, d] for e, d in rows))
    )


def commands(evidence: Row) -> str:
    """What makes this evidence again, or brings it back."""
    again = evidence["again"]
    words = ["--audio FOLDER"] if again["audio"] else []
    words += [shlex.quote(o) for o in again["overrides"] or ()]
    unknown = again["overrides"] is None
    run = " ".join((f".venv/bin/aut run --profile {evidence['profile']}", *words))
    return (
        f"make setup\n{run}   # everything again{', with the overrides of its params.yaml' if unknown else ''}\n"
        ".venv/bin/aut restore VERSION   # or: everything back, nothing computed"
    )


def with_lineage(page: str, facts: Mapping[str, str]) -> str:
    """A report's page with what a model version was made of: revisions, runs, digests."""
    made = section("Lineage of this version", table(("tag", "value"), ([k, v] for k, v in sorted(facts.items()))))
    return page.replace("</main>", f"{made}</main>", 1)


def figure(svg: str) -> str:
    """A drawing keeps its size on a phone and is moved sideways, so that its words stay readable."""
    return f"<div class='scroll'>{svg}</div>" if svg else ""


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<{'th scope=row' if n == 0 else 'td'}>{escape(c)}</{'th' if n == 0 else 'td'}>" for n, c in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _standalone(svg: str, css: str) -> str:
    return svg.replace("<svg ", "<svg xmlns='http://www.w3.org/2000/svg' ", 1).replace(
        "<title>", f"<style>{escape(css)}</style><title>", 1
    )
