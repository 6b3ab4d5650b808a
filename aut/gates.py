"""Gates: does the evidence allow this encoder to become champion?

In    evidence.json (or the part of it that is there), the limits in params
Out   one verdict a gate, in a fixed order, each with the numbers it rests on
Why   a pure function: `compare` writes the verdicts, `register` obeys them, and both mean the same thing.
      What is not in the evidence does not pass: an absent figure is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aut.config import Compare, Gates

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """`decides` is False for a finding that is told but moves no alias ('beats log-mel')."""

    gate: str
    passed: bool
    detail: str
    decides: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(evidence: Mapping[str, Any], gates: Gates, compare: Compare) -> list[Verdict]:
    """Verdicts on an evidence mapping (differences in percentage points, leakage, parity); findings come last."""
    differences = evidence.get("differences", [])
    verdicts = [leakage(evidence.get("leakage", {}).get("domains", {}), gates.leakage_max_fraction)]
    verdicts += [gain(differences, domain, compare.a, compare.against) for domain in gates.gain_domains]
    verdicts.append(speech(differences, compare.a, gates.speech_margin_points))
    parity_rows = evidence.get("parity", {})
    if gates.parity:
        verdicts.append(parity(parity_rows, compare.a))
    if gates.drop_in:
        verdicts.append(drop_in(parity_rows, compare.a))
    return verdicts + [beats(differences, compare.a, baseline) for baseline in compare.baselines]


def leakage(domains: Mapping[str, Mapping[str, Any]], limit: float) -> Verdict:
    """Share of each domain's pool that overlaps a probe set (and was removed)."""
    told = [f"{d} {r['flagged']} of {r['pool']} ({100 * r['fraction']:.2f} %)" for d, r in sorted(domains.items())]
    passed = bool(domains) and all(r["fraction"] <= limit for r in domains.values())
    return Verdict("leakage", passed, f"{_told(told)}; limit {100 * limit:g} %")


def gain(differences: Rows, domain: str, a: str, against: Sequence[str]) -> Verdict:
    """Every difference on the domain's sets, to each encoder of `against`, has its interval above zero."""
    rows = [r for b in against for r in _rows(differences, a, b, domain=domain)]
    absent = [b for b in against if not _rows(differences, a, b, domain=domain)]
    passed = bool(rows) and not absent and all(r["low"] > 0 for r in rows)
    told = [_difference(r) for r in rows] + [f"no comparison with {b}" for b in absent]
    return Verdict(f"gain.{domain}", passed, _told(told))


def speech(differences: Rows, a: str, margin: float) -> Verdict:
    """No loss on speech beyond the margin: the lower bound of a - base lies above minus the margin."""
    rows = _rows(differences, a, "base", domain="speech")
    passed = bool(rows) and all(r["low"] > -margin for r in rows)
    told = [_difference(r) for r in rows]
    blind = [r for r in rows if r["mdd"] > margin]
    told += [f"{r['set']}: the margin is below the detectable difference of {r['mdd']:.1f}" for r in blind]
    return Verdict("speech", passed, f"{_told(told)}; margin {margin:g} points")


def parity(rows: Mapping[str, Mapping[str, Any]], a: str) -> Verdict:
    """The exported encoder equals the one that was trained. Encoders without a counterpart say None."""
    own = [name for name in rows if _is_arm(name, a)]
    failed = [f"{n} off by {_figure(r.get('max_error'))}" for n, r in sorted(rows.items()) if r.get("passed") is False]
    unproved = [n for n in own if rows[n].get("passed") is None]
    passed = bool(own) and not failed and not unproved
    errors = [f"{n} within {_figure(rows[n].get('max_error'))}" for n in sorted(own)]
    return Verdict("parity", passed, _told(failed + [f"{n} not checked" for n in unproved] or errors))


def drop_in(rows: Mapping[str, Mapping[str, Any]], a: str) -> Verdict:
    """The reference class loads the exported weights in place of its own encoder."""
    own = {name: bool(r.get("drop_in")) for name, r in rows.items() if _is_arm(name, a)}
    told = [f"{n} {'loads' if ok else 'does not load'}" for n, ok in sorted(own.items())]
    return Verdict("drop_in", bool(own) and all(own.values()), _told(told))


def beats(differences: Rows, a: str, baseline: str) -> Verdict:
    """Told, not decided on: a baseline without any training may win a set, and that must be said."""
    rows = _rows(differences, a, baseline)
    passed = bool(rows) and all(r["low"] > 0 for r in rows)
    return Verdict(f"beats.{baseline}", passed, _told([_difference(r) for r in rows]), decides=False)


def allowed(verdicts: Sequence[Verdict]) -> bool:
    """True when every deciding gate passed; no gate at all allows nothing."""
    deciding = [v for v in verdicts if v.decides]
    return bool(deciding) and all(v.passed for v in deciding)


def _rows(differences: Rows, a: str, b: str, domain: str | None = None) -> list[Mapping[str, Any]]:
    return [r for r in differences if r["a"] == a and r["b"] == b and domain in (None, r["domain"])]


def _is_arm(name: str, a: str) -> bool:
    """'adapted' and 'adapted-0', not 'adapted-base'."""
    return name == a or (name.startswith(f"{a}-") and name.removeprefix(f"{a}-").isdigit())


def _difference(row: Mapping[str, Any]) -> str:
    return f"{row['set']}: {row['a']} - {row['b']} {row['diff']:+.1f} ({row['low']:+.1f}, {row['high']:+.1f})"


def _told(parts: Sequence[str]) -> str:
    return "; ".join(parts) or "nothing in the evidence"


def _figure(value: Any) -> str:
    return "an unknown amount" if value is None else f"{value:.1e}"
