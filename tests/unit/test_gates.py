"""Gates: each one's pass, fail and absence; the numbers it rests on are in its detail."""

from __future__ import annotations

from typing import Any

import pytest

from aut.config import Compare, Gates
from aut.gates import Verdict, allowed, evaluate

GATES = Gates(
    leakage_max_fraction=0.01,
    gain_domains=["environment", "music"],
    speech_margin_points=3.0,
    parity=True,
    drop_in=True,
)
COMPARE = Compare(a="adapted", against=["base", "control"], baselines=["logmel"], resamples=1000, level=0.95, power=0.8)


def row(name: str, domain: str, b: str, low: float, mdd: float = 1.0) -> dict[str, Any]:
    return {
        "set": name,
        "domain": domain,
        "a": "adapted",
        "b": b,
        "diff": low + 2,
        "low": low,
        "high": low + 4,
        "mdd": mdd,
    }


def evidence() -> dict[str, Any]:
    pairs = [("words", "speech", -1.0), ("esc", "environment", 3.0), ("gtz", "music", 2.0)]
    rows = [row(n, d, b, low) for n, d, low in pairs for b in ("base", "control")]
    rows += [row("esc", "environment", "logmel", -9.0)]
    return {
        "differences": rows,
        "leakage": {"domains": {"speech": {"pool": 1000, "flagged": 10, "fraction": 0.01}}},
        "parity": {
            "base": {"max_error": 1e-6, "atol": 1e-4, "passed": True, "drop_in": True},
            "adapted-0": {"max_error": 1e-6, "atol": 1e-4, "passed": True, "drop_in": True},
            "logmel": {"max_error": None, "atol": None, "passed": None, "drop_in": None},
        },
    }


def verdicts(values: dict[str, Any]) -> dict[str, Verdict]:
    return {v.gate: v for v in evaluate(values, GATES, COMPARE)}


def change(values: dict[str, Any], b: str, domain: str, **to: Any) -> dict[str, Any]:
    values["differences"] = [{**r, **to} if (r["b"], r["domain"]) == (b, domain) else r for r in values["differences"]]
    return values


def test_good_evidence_passes_and_a_lost_baseline_is_told_without_deciding() -> None:
    found = evaluate(evidence(), GATES, COMPARE)
    assert [v.gate for v in found if v.decides] == [
        "leakage", "gain.environment", "gain.music", "speech", "parity", "drop_in"
    ]  # fmt: skip
    assert allowed(found)
    (baseline,) = [v for v in found if not v.decides]
    assert (baseline.gate, baseline.passed) == ("beats.logmel", False)
    assert "esc: adapted - logmel -7.0 (-9.0, -5.0)" in baseline.detail


@pytest.mark.parametrize(
    ("b", "domain", "low", "gate"),
    [
        ("base", "environment", 0.0, "gain.environment"),
        ("control", "music", -0.1, "gain.music"),
        ("base", "speech", -3.0, "speech"),
    ],
)
def test_a_bound_on_the_limit_fails(b: str, domain: str, low: float, gate: str) -> None:
    found = verdicts(change(evidence(), b, domain, low=low))
    assert [g for g, v in found.items() if v.decides and not v.passed] == [gate]


def test_control_does_not_decide_on_speech() -> None:
    assert verdicts(change(evidence(), "control", "speech", low=-50.0))["speech"].passed


def test_a_margin_that_the_clips_cannot_show_is_said() -> None:
    found = verdicts(change(evidence(), "base", "speech", mdd=4.2))["speech"]
    assert found.passed
    assert "detectable difference of 4.2" in found.detail


def test_leakage_above_the_limit_fails() -> None:
    values = evidence()
    values["leakage"]["domains"]["music"] = {"pool": 100, "flagged": 2, "fraction": 0.02}
    found = verdicts(values)["leakage"]
    assert not found.passed
    assert "music 2 of 100" in found.detail


def test_parity_of_any_encoder_and_drop_in_of_each_arm_are_needed() -> None:
    values = evidence()
    values["parity"]["base"]["passed"] = False
    values["parity"]["adapted-1"] = {"max_error": 1e-6, "atol": 1e-4, "passed": True, "drop_in": False}
    found = verdicts(values)
    assert not found["parity"].passed
    assert not found["drop_in"].passed
    assert "adapted-1 does not load" in found["drop_in"].detail


def test_an_arm_whose_parity_was_not_checked_fails() -> None:
    values = evidence()
    values["parity"]["adapted-0"]["passed"] = None
    assert not verdicts(values)["parity"].passed


def test_nothing_in_the_evidence_passes_nothing() -> None:
    found = evaluate({}, GATES, COMPARE)
    assert not any(v.passed for v in found)
    assert not allowed([])


def test_one_missing_comparison_fails_its_gate() -> None:
    values = evidence()
    values["differences"] = [r for r in values["differences"] if (r["b"], r["domain"]) != ("control", "music")]
    found = verdicts(values)["gain.music"]
    assert not found.passed
    assert "no comparison with control" in found.detail


def test_an_encoder_named_like_the_arm_is_not_one_of_its_seeds() -> None:
    values = evidence()
    values["parity"]["adapted-big"] = {"max_error": None, "atol": None, "passed": None, "drop_in": None}
    assert verdicts(values)["parity"].passed
