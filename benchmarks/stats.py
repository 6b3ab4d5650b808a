"""Are the intervals and tests what they say? By simulation at the sets' own sizes, and against references.

Figures  coverage_pct           the case furthest from 95, of 95 % intervals for a true difference
         null_reject_pct        the case furthest from 5, of tests at 5 % where nothing differs
         worst_reference_error  largest absolute difference of a p value or bound to scipy and statsmodels
--quick  1,000 draws a case instead of 20,000; the resamples of one draw are 999 in both
"""

from __future__ import annotations

from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from aut import stats
from benchmarks._common import arguments, finish, machine, say

BLOCK = 500  # draws of one task


@dataclass(frozen=True)
class Case:
    """A probe set: recordings, clips of each, share of clips on which two encoders differ, true difference."""

    recordings: int
    clips_each: int
    differing: float
    gain: float


CASES = {
    "esc50": Case(1590, 1, 0.2, 0.03),
    "esc50_fold5": Case(400, 1, 0.25, 0.05),
    "gtzan": Case(1000, 1, 0.12, 0.02),
    "gtzan_fifth": Case(200, 1, 0.15, 0.04),
    "speech_commands": Case(400, 28, 0.03, 0.003),
    "toy": Case(2000, 1, 0.08, 0.01),
    "few_speakers": Case(60, 20, 0.1, 0.01),
}


def draw(case: Case, gain: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correctness of two encoders [N] each and clusters [N]; recordings differ in how many clips change on them."""
    shape = (case.recordings, case.clips_each)
    change = case.differing * (rng.gamma(2.0, 0.5, (case.recordings, 1)) if case.clips_each > 1 else 1.0)
    lean = gain / case.differing  # of a changed clip towards a
    differs = rng.random(shape) < np.minimum(change, 1.0)
    for_a = rng.random(shape) < (1.0 + lean) / 2.0
    both = rng.random(shape) < 0.75
    a, b = np.where(differs, for_a, both).ravel(), np.where(differs, ~for_a, both).ravel()
    return a, b, np.repeat(np.arange(case.recordings), case.clips_each)


def calibrate(case: Case, draws: int, resamples: int, pool: Executor) -> tuple[float, float]:
    """Per cent of intervals that hold the true difference, and of null tests that reject at 5 %."""
    truth = _true_gain(case)
    blocks = [pool.submit(_block, case, truth, start, min(BLOCK, draws - start), resamples) for start in
              range(0, draws, BLOCK)]  # fmt: skip
    covered, rejected = (sum(counts) for counts in zip(*(b.result() for b in blocks), strict=True))
    return 100 * covered / draws, 100 * rejected / draws


def _block(case: Case, truth: float, start: int, draws: int, resamples: int) -> tuple[int, int]:
    """Intervals that cover and null tests that reject among some draws; a block has a random stream of its own."""
    rng = np.random.default_rng([20_261_123, case.recordings, case.clips_each, start])
    covered = rejected = 0
    for n in range(start, start + draws):
        a, b, cluster = draw(case, case.gain, rng)
        found = stats.paired_difference(a, b, cluster, 0.95, resamples, n)
        covered += found.low <= truth <= found.high
        a, b, cluster = draw(case, 0.0, rng)
        rejected += stats.paired_difference(a, b, cluster, 0.95, resamples, n).p < 0.05
    return covered, rejected


def _true_gain(case: Case) -> float:
    """The mean difference of `draw`: a gamma rate cut at 1 loses a little."""
    if case.clips_each == 1:
        return case.gain
    rate = case.differing * np.random.default_rng(0).gamma(2.0, 0.5, 1_000_000)
    return case.gain * float(np.minimum(rate, 1.0).mean() / case.differing)


def reference_error() -> float:
    """Largest absolute difference to scipy and statsmodels over random tables."""
    from scipy.stats import binom, binomtest
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint, proportions_ztest

    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(300):
        up, down = (int(v) for v in rng.integers(1, 80, 2))
        n, k = up + down, min(up, down)
        test = stats.mcnemar(np.repeat([1, 0], [up, down]), np.repeat([0, 1], [up, down]))
        mid = min(1.0, 2 * binom.cdf(k, n, 0.5) - binom.pmf(k, n, 0.5))
        p = rng.random(9)
        pairs = [
            (test.exact_p, binomtest(up, n).pvalue),
            (test.mid_p, mid),
            (stats.two_proportions(up, 100, down, 120), proportions_ztest([up, down], [100, 120])[1]),
            *zip(stats.wilson(up, n, 0.95), proportion_confint(up, n, 0.05, "wilson"), strict=True),
            *zip(stats.holm(p.tolist()), multipletests(p, method="holm")[1], strict=True),
        ]
        worst = max(worst, *(abs(float(x) - float(y)) for x, y in pairs))
    return worst


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    draws = 1000 if options.quick else 20_000
    found = {}
    with ProcessPoolExecutor() as pool:
        for name, case in CASES.items():
            found[name] = calibrate(case, draws, 999, pool)
            say(f"{name}: {found[name][0]:.2f} % of intervals cover, {found[name][1]:.2f} % of null tests reject")
    figures = {
        "coverage_pct": max((c for c, _ in found.values()), key=lambda v: abs(v - 95)),
        "null_reject_pct": max((r for _, r in found.values()), key=lambda v: abs(v - 5)),
        "worst_reference_error": reference_error(),
    }
    facts = {"machine": machine("numpy", "scipy", "statsmodels"), "cases": found, "draws": draws}
    facts |= {"resamples": 999, "peer": "scipy, statsmodels"}
    finish("stats", figures, options.keep, facts)


if __name__ == "__main__":
    main()
