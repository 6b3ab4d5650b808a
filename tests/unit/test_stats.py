"""Statistics against scipy and statsmodels, and their calibration by simulation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aut import stats
from aut.errors import DataError
from benchmarks.stats import CASES, calibrate


def pair(clips: int, seed: int, gain: float = 0.1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    b = rng.random(clips) < 0.6
    a = np.where(rng.random(clips) < gain, True, b ^ (rng.random(clips) < 0.1))
    return a.astype(float), b.astype(float)


@given(st.integers(0, 60), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_wilson_equals_statsmodels(right: int, more: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(right, right + more, 0.05, "wilson")
    np.testing.assert_allclose(stats.wilson(right, right + more, 0.95), expected, atol=1e-9)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_mcnemar_equals_scipy_and_statsmodels(up: int, down: int) -> None:
    from scipy.stats import binom, binomtest
    from statsmodels.stats.contingency_tables import mcnemar

    a = np.array([1] * up + [0] * down + [1, 0])
    b = np.array([0] * up + [1] * down + [1, 0])
    found = stats.mcnemar(a, b)
    if up + down == 0:
        assert found.exact_p == found.mid_p == 1.0
        return
    assert found.exact_p == pytest.approx(binomtest(up, up + down).pvalue, abs=1e-12)
    assert found.exact_p == pytest.approx(mcnemar([[1, up], [down, 1]], exact=True).pvalue, abs=1e-12)
    k, n = min(up, down), up + down
    assert found.mid_p == pytest.approx(min(1.0, 2 * binom.cdf(k, n, 0.5) - binom.pmf(k, n, 0.5)), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_holm_equals_statsmodels(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(seed)
    p = np.round(rng.random(1 + seed % 12) ** 3, 2).tolist()  # rounded, so that some tie
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1], atol=1e-12)


def test_two_proportions_and_effect_equal_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_effectsize, proportions_ztest

    assert stats.two_proportions(310, 400, 218, 400) == pytest.approx(proportions_ztest([310, 218], [400, 400])[1])
    assert stats.cohen_h(0.7, 0.5) == pytest.approx(proportion_effectsize(0.7, 0.5))


def test_corrected_resampled_t_is_the_plain_one_without_overlap() -> None:
    from scipy.stats import ttest_1samp

    diff = np.random.default_rng(0).normal(0.3, 1, 10)
    expected = ttest_1samp(diff, 0)
    assert stats.corrected_resampled_t(diff, 0.0) == pytest.approx((expected.statistic, expected.pvalue))
    assert stats.corrected_resampled_t(diff, 0.25)[1] > expected.pvalue
    with pytest.raises(DataError, match="1 divisions"):
        stats.corrected_resampled_t([0.1], 0.25)


def test_standard_error_equals_statsmodels_clustered() -> None:
    """The linearised ratio's error is cluster-robust least squares' on a constant, but for our pseudo-clip."""
    import statsmodels.api as sm

    a, b = pair(3000, 0)
    cluster = np.random.default_rng(1).integers(300, size=3000)
    found = stats.paired_difference(a, b, cluster, 0.95, 999)
    model = sm.OLS(a - b, np.ones(3000)).fit(cov_type="cluster", cov_kwds={"groups": cluster, "df_correction": True})
    assert found.diff == pytest.approx(model.params[0])
    assert found.se == pytest.approx(float(model.bse[0]), rel=5e-3)  # the pseudo-clip adds 1 to some 600 squares


def test_multinomial_and_index_resamples_agree() -> None:
    """Distinct cluster sums force the index path; a hair of noise must not move the interval."""
    a, b = pair(1500, 2)
    few = stats.paired_difference(a, b, np.arange(1500), 0.95, 20_000)
    noisy = np.clip(a + np.random.default_rng(0).uniform(-1e-6, 1e-6, 1500), 0, 1)
    many = stats.paired_difference(noisy, b, np.arange(1500), 0.95, 20_000)
    assert few.low == pytest.approx(many.low, abs=6e-4)  # Monte Carlo error of a 95 % bound at 20,000 resamples
    assert few.high == pytest.approx(many.high, abs=6e-4)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_interval_and_p_say_the_same(seed: int) -> None:
    a, b = pair(150, seed, 0.08)
    cluster = np.arange(150) // 3
    found = stats.paired_difference(a, b, cluster, 0.95, 999, seed)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0) or found.p == pytest.approx(0.05, abs=2e-3)
    mirrored = stats.paired_difference(b, a, cluster, 0.95, 999, seed)
    assert mirrored.diff == pytest.approx(-found.diff)


def test_equal_encoders_differ_by_nothing() -> None:
    a, _ = pair(200, 0)
    found = stats.paired_difference(a, a, np.arange(200), 0.95, 999)
    assert (found.diff, found.p) == (0.0, 1.0)
    assert -0.02 < found.low < 0 < found.high < 0.02


def test_accuracy_interval_chooses_its_method() -> None:
    a, _ = pair(400, 0)
    independent = stats.accuracy_interval(a, np.arange(400), 0.95, 999)
    clustered = stats.accuracy_interval(np.repeat(a, 5), np.repeat(np.arange(400), 5), 0.95, 999)
    assert (independent.method, clustered.method) == ("wilson", "bootstrap")
    # Five copies of a clip tell no more than one.
    assert clustered.high - clustered.low == pytest.approx(independent.high - independent.low, rel=0.06)


def test_minimum_detectable_is_found_with_its_power() -> None:
    rng = np.random.default_rng(0)
    clips, half = 2000, 0.06
    draw = rng.random(clips)
    mdd = stats.minimum_detectable(draw < half, (draw >= half) & (draw < 2 * half), np.arange(clips), 0.95, 0.8)
    found = 0
    for n in range(400):
        d = np.random.default_rng([1, n]).random(clips)
        a, b = d < half + mdd / 2, (d >= half + mdd / 2) & (d < 2 * half)
        found += stats.paired_difference(a, b, np.arange(clips), 0.95, 999, n).p < 0.05
    assert 0.72 < found / 400 < 0.88  # 0.8 within 4 standard deviations of 400 draws


def test_published_table() -> None:
    rows = {r["set"]: r for r in stats.published()}
    assert {n: r["significant"] for n, r in rows.items()} == {"esc50": True, "gtzan": False, "speech_commands": False}
    assert rows["esc50"]["p"] == pytest.approx(6.6e-12, rel=0.01)
    assert rows["gtzan"]["p"] == pytest.approx(0.18, abs=0.005)
    assert rows["speech_commands"]["p"] == pytest.approx(0.39, abs=0.005)


@pytest.mark.parametrize(
    ("a", "b", "cluster", "message"),
    [
        ([1, 0, 1], [1, 0], [0, 1, 2], "3 clips of one encoder and 2"),
        ([], [], [], "no clips"),
        ([1, 2], [0, 1], [0, 1], "outside 0"),
        ([1, 0], [0, 1], [0], "2 clips but 1 recordings"),
        ([1, 0], [0, 1], [5, 5], "one recording"),
    ],
)
def test_bad_input(a: list[float], b: list[float], cluster: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stats.paired_difference(a, b, cluster, 0.95, 99)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_calibration(name: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        covered, rejected = calibrate(CASES[name], draws=4000, resamples=999, pool=pool)
    assert 93.0 < covered < 97.0
    assert 3.7 < rejected < 6.3  # 4 ... 6 %, 4,000 draws have a standard deviation of 0.35


def test_a_rate_is_a_ratio_of_sums_and_its_interval_covers() -> None:
    """Errors per word, recordings of unequal size: the estimate is the ratio of sums, 95 % intervals hold the truth."""
    rng = np.random.default_rng(11)
    inside = 0
    for draw in range(400):
        recording = np.repeat(np.arange(60), 3)
        words = rng.integers(3, 25, 180)
        hardness = rng.beta(2, 18, 60)[recording]  # mean 0.1
        wrong = rng.binomial(words, hardness)
        found = stats.rate_interval(wrong, words, recording, 0.95, 400, draw)
        assert found.estimate == pytest.approx(wrong.sum() / words.sum())
        inside += found.low <= 0.1 <= found.high
    assert 0.92 <= inside / 400 <= 0.98  # 95 % +- 2.7 standard errors of 400 draws


@pytest.mark.parametrize(("count", "per"), [([], []), ([1.0], [0.0]), ([float("nan")], [1.0]), ([1.0, 2.0], [1.0])])
def test_a_rate_of_nothing_is_refused(count: list[float], per: list[float]) -> None:
    with pytest.raises(DataError, match="a rate needs"):
        stats.rate_interval(count, per, list(range(len(count))), 0.95, 10)
