"""Tables for a terminal: results with intervals, verdicts, the registered version, where to look further."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from aut.files import read_json
from aut.layout import Layout


def print_summary(copy: Layout) -> None:
    """Evidence of a working copy: accuracies, differences, verdicts, version, the two commands to look further."""
    evidence = read_json(copy.evidence / "evidence.json")
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    console.print(_accuracies(evidence["table"]))
    console.print(_differences(evidence["differences"]))
    for verdict in evidence["verdicts"]:
        console.print(_verdict(verdict))
    _registered(console, copy)
    console.print(
        "\nlook further:  [bold]aut ui[/] (runs and versions)   [bold]aut report --open[/] (the whole evidence)"
    )


def _verdict(verdict: dict[str, Any]) -> str:
    """A gate passes or fails; a finding ('beats log-mel') is told and decides nothing."""
    if not verdict["decides"]:
        return f"{'yes ' if verdict['passed'] else 'no  '}  {verdict['gate']}: {verdict['detail']}"
    mark = "[green]pass[/]" if verdict["passed"] else "[red]FAIL[/]"
    return f"{mark}  gate {verdict['gate']}: {verdict['detail']}"


def _accuracies(rows: list[dict[str, Any]]) -> Table:
    """Encoders down, probe sets across: accuracy in per cent with its interval, first protocol and pooling."""
    sets = sorted({r["set"] for r in rows})
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for r in rows:
        if r.get("primary", True):
            cells[r["encoder"]][r["set"]] = f"{r['accuracy']:.1f} ({r['low']:.1f}, {r['high']:.1f})"
    table = Table(title="Linear-probe accuracy, % (interval)", title_justify="left")
    table.add_column("encoder")
    for name in sets:
        table.add_column(name, justify="right")
    for encoder, by_set in cells.items():
        table.add_row(encoder, *(by_set.get(s, "-") for s in sets))
    return table


def _differences(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Differences, points (mdd: the smallest that these clips can show)", title_justify="left")
    for name in ("set", "domain", "difference", "diff", "interval", "p (Holm)", "mdd"):
        table.add_column(name, justify="left" if name in ("set", "domain", "difference") else "right")
    for r in rows:
        interval = f"({r['low']:+.1f}, {r['high']:+.1f})"
        difference = f"{r['a']} - {r['b']}"
        table.add_row(
            r["set"], r["domain"], difference, f"{r['diff']:+.1f}", interval, f"{r['p_holm']:.2g}", f"{r['mdd']:.1f}"
        )
    return table


def print_published(as_json: bool) -> None:
    """The paper's table through our statistics: unpaired, as it gives counts and no predictions."""
    from aut.stats import published

    rows = published()
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201
        return
    table = Table(title="arXiv 2604.10438, section 4.3: % right (95 % interval), unpaired test", title_justify="left")
    for name in ("set", "clips", "base", "adapted", "points", "h", "p", "p (Holm)", "significant"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for r in rows:
        shares = (_share(r[k], r[f"{k}_interval"]) for k in ("base", "adapted"))
        figures = (f"{100 * r['diff']:+.2f}", f"{r['h']:.2f}", f"{r['p']:.2g}", f"{r['p_holm']:.2g}")
        table.add_row(r["set"], str(r["clips"]), *shares, *figures, "yes" if r["significant"] else "no")
    Console(width=None if Console().is_terminal else 130, highlight=False).print(table)


def _share(share: float, interval: tuple[float, float]) -> str:
    return f"{100 * share:.1f} ({100 * interval[0]:.1f}, {100 * interval[1]:.1f})"


def _registered(console: Console, copy: Layout) -> None:
    path = copy.registered / "registered.json"
    if not path.exists():
        return
    version = read_json(path)
    aliases = ", ".join(version["aliases"]) or "none"
    console.print(f"\nregistered: models:/{version['name']}/{version['version']}  (aliases: {aliases})")


def print_status(checkout: Layout, profile: str) -> None:
    """Stages of the profile that are out of date, the last runs, candidate and champion."""
    from aut.edges import registry, tracking
    from flows.reproduce import changed_stages

    console = Console(highlight=False)
    copy = Layout(checkout.work / "copies" / profile)
    if not copy.params.exists():
        console.print(f"profile {profile}: never run here (aut run --profile {profile})")
    else:
        changed = sorted(changed_stages(copy.root))
        state = "up to date" if not changed else f"{len(changed)} stages changed: {', '.join(changed[:8])}"
        console.print(f"profile {profile}: {state}{' ...' if len(changed) > 8 else ''}")
    uri = tracking.resolve_uri(tracking.embedded_uri(checkout))
    tracking.ready(uri, checkout)
    console.print(f"tracking: {uri}")
    for row in tracking.latest_runs(uri, 5):
        start = datetime.fromtimestamp(row["start_ms"] / 1000).strftime("%Y-%m-%d %H:%M")
        console.print(f"  {start}  {row['status']:<9} {row['profile']:<10} {row['run_id']}")
    for alias in ("candidate", "champion"):
        version = registry.alias_version(uri, "whisper-aut", alias)
        console.print(f"{alias}: {'models:/whisper-aut/' + version if version else 'none yet'}")
