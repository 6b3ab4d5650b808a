"""Statistics of paired, clustered correctness: intervals, tests, corrections, what a set can detect.

In    correctness per clip (0/1, or a share over seeds) and the recording each clip was cut from
Out   estimates with intervals and p values, as plain frozen records
Why   clips of one recording fall together, so recordings are resampled, never clips. The interval and the p value
      come from one studentised bootstrap: plain percentiles are too narrow where few clips differ. Clusters with
      equal (sum, size) are interchangeable, so a resample is one multinomial draw over the distinct pairs: exact, and
      10,000 resamples of 2,000 recordings take milliseconds. Price: symmetric intervals (clipped to what is possible).
Run   python -m benchmarks.stats

`N` clips, `G` recordings, `K` distinct (sum, size) pairs, `R` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aut.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

BLOCK = 1 << 22  # drawn counts or indices held at once: 32 MiB
PSEUDO_CLIPS = 1.0  # half a clip gained and half a clip lost, see _standard_error


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate in [0, 1] with its interval; `method` is 'wilson' or 'bootstrap'."""

    estimate: float
    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True)
class Difference:
    """a - b as a share, its interval and two-sided p; `se` is clustered; `h` is Cohen's effect size."""

    diff: float
    low: float
    high: float
    p: float
    se: float
    h: float
    clips: int
    clusters: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """Discordant clips, both two-sided p values, and the odds only_a : only_b (half a clip added to each)."""

    only_a: int
    only_b: int
    exact_p: float
    mid_p: float
    odds: float


def accuracy_interval(
    correct_N: ArrayLike, cluster_N: ArrayLike, level: float, resamples: int, seed: int = 0
) -> Interval:
    """Mean of correct_N [N] in [0, 1]. Wilson where clips are 0/1 and each its own cluster, else the bootstrap.

    DataError: empty, of unequal lengths, not finite, or outside [0, 1].
    """
    correct = _shares(correct_N)
    sums, sizes = _by_cluster(correct, cluster_N)
    if len(sums) == len(correct) and np.isin(correct, (0.0, 1.0)).all():
        return Interval(float(correct.mean()), *wilson(int(correct.sum()), len(correct), level), "wilson")
    estimate, se, t_R = _studentised(sums, sizes, resamples, seed)
    half = _critical(t_R, level) * se
    return Interval(estimate, max(0.0, estimate - half), min(1.0, estimate + half), "bootstrap")


def paired_difference(
    correct_a_N: ArrayLike, correct_b_N: ArrayLike, cluster_N: ArrayLike, level: float, resamples: int, seed: int = 0
) -> Difference:
    """a - b on the same N clips, by a studentised bootstrap over the recordings in cluster_N [N].

    correct_a_N, correct_b_N [N] in [0, 1] (averaged over seeds where there are several). p >= 1 / (resamples + 1);
    p < 1 - level where the interval leaves out zero (but for ties of a resample). DataError as in `accuracy_interval`.
    """
    a, b = _shares(correct_a_N), _shares(correct_b_N)
    sums, sizes = _by_cluster(_paired(a, b), cluster_N)
    diff, se, t_R = _studentised(sums, sizes, resamples, seed)
    half = _critical(t_R, level) * se
    return Difference(
        diff=diff,
        low=max(-1.0, diff - half),
        high=min(1.0, diff + half),
        p=_two_sided(t_R, diff / se),
        se=se,
        h=cohen_h(float(a.mean()), float(b.mean())),
        clips=len(a),
        clusters=len(sums),
    )


def rate_interval(
    count_N: ArrayLike, per_N: ArrayLike, cluster_N: ArrayLike, level: float, resamples: int, seed: int = 0
) -> Interval:
    """sum(count) / sum(per), as errors per word, by a studentised bootstrap over the recordings in cluster_N [N].

    count_N [N] may be a paired difference of counts, per_N [N] is positive. DataError: empty, not finite.
    """
    count, per = np.asarray(count_N, np.float64), np.asarray(per_N, np.float64)
    if not len(count) or count.shape != per.shape or not np.isfinite(count).all() or not (per > 0).all():
        raise DataError("a rate needs a finite count and a positive base for every clip", "look at the transcripts")
    sums, sizes = (_by_cluster(x, cluster_N)[0] for x in (count, per))
    estimate, se, t_R = _studentised(sums, sizes, resamples, seed)
    half = _critical(t_R, level) * se
    return Interval(estimate, estimate - half, estimate + half, "bootstrap")


def minimum_detectable(
    correct_a_N: ArrayLike, correct_b_N: ArrayLike, cluster_N: ArrayLike, level: float, power: float
) -> float:
    """The true difference this set would find with probability `power`, from the observed paired clustered variance.

    A share, positive; Bloom (1995): (t_{1-alpha/2} + t_power) standard errors on G - 1 degrees of freedom.
    """
    from scipy.special import stdtrit

    sums, sizes = _by_cluster(_paired(_shares(correct_a_N), _shares(correct_b_N)), cluster_N)
    moments = _moments(sums, sizes).sum(axis=0, keepdims=True)
    _, se = _standard_error(moments, len(sums))
    df = max(1, len(sums) - 1)
    return float((stdtrit(df, 0.5 + level / 2) + stdtrit(df, power)) * se[0])


def mcnemar(correct_a_N: ArrayLike, correct_b_N: ArrayLike) -> McNemar:
    """Exact binomial test on the discordant clips, and its mid-p (Fagerland et al. 2013), of 0/1 correctness [N]."""
    a, b = np.asarray(correct_a_N, bool), np.asarray(correct_b_N, bool)
    if a.shape != b.shape:
        raise DataError(f"{len(a)} clips of one encoder and {len(b)} of the other", "compare the same clips")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, k = only_a + only_b, min(only_a, only_b)
    at = math.comb(n, k)
    up_to = sum(_binomials(n, k))
    exact = min(1.0, 2 * up_to / 2**n)
    mid = min(1.0, (2 * up_to - at) / 2**n)
    return McNemar(only_a, only_b, exact, mid, (only_a + 0.5) / (only_b + 0.5))


def holm(p: Sequence[float]) -> Floats:
    """Holm's step-down adjusted p values, in the order given (Holm 1979)."""
    raw = np.asarray(p, np.float64)
    order = np.argsort(raw, kind="stable")
    steps = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def corrected_resampled_t(diff_R: ArrayLike, test_fraction: float) -> tuple[float, float]:
    """t and two-sided p of per-division differences [R], whose training parts overlap (Nadeau & Bengio 2003).

    `test_fraction` is test over training clips (0.25 for 80/20). Two divisions or more.
    """
    from scipy.special import stdtr

    diff = np.asarray(diff_R, np.float64)
    if len(diff) < 2:
        raise DataError(f"{len(diff)} divisions have no variance", "give probe.protocols.<name>.repeats two or more")
    se = math.sqrt(float(diff.var(ddof=1)) * (1 / len(diff) + test_fraction))
    mean = float(diff.mean())
    if se == 0.0:
        return (0.0, 1.0) if mean == 0.0 else (math.copysign(math.inf, mean), 0.0)
    return mean / se, float(2 * stdtr(len(diff) - 1, -abs(mean / se)))


def cohen_h(a: float, b: float) -> float:
    """Effect size of two proportions: 0.2 small, 0.5 medium, 0.8 large (Cohen 1988)."""
    return 2 * math.asin(math.sqrt(a)) - 2 * math.asin(math.sqrt(b))


def wilson(right: int, clips: int, level: float) -> tuple[float, float]:
    """Score interval of a proportion of independent clips (Wilson 1927)."""
    z = _normal_quantile(0.5 + level / 2)
    p, z2 = right / clips, z * z / clips
    middle, half = p + z2 / 2, z * math.sqrt(p * (1 - p) / clips + z2 / (4 * clips))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return (0.0 if right == 0 else low), (1.0 if right == clips else high)


def two_proportions(right_a: int, clips_a: int, right_b: int, clips_b: int) -> float:
    """Two-sided p of the pooled z test, for tables that give no per-clip predictions."""
    pooled = (right_a + right_b) / (clips_a + clips_b)
    se = math.sqrt(pooled * (1 - pooled) * (1 / clips_a + 1 / clips_b))
    return 1.0 if se == 0.0 else math.erfc(abs(right_a / clips_a - right_b / clips_b) / se / math.sqrt(2))


PUBLISHED = (
    # set, clips, right before, right after. Speech Commands' clips are inferred from the two decimals given.
    ("esc50", 400, 218, 310),
    ("gtzan", 200, 162, 172),
    ("speech_commands", 3081, 2699, 2721),
)
"""arXiv 2604.10438v1, section 4.3: fold 5 of ESC-50, a fifth of GTZAN, the SUPERB test list."""


def published(level: float = 0.95) -> list[dict[str, Any]]:
    """The paper's table through the unpaired test: one row a set, shares, p, p_holm, and whether it is significant."""
    rows: list[dict[str, Any]] = []
    for name, clips, before, after in PUBLISHED:
        row: dict[str, Any] = {"set": name, "clips": clips, "base": before / clips, "adapted": after / clips}
        row |= {"base_interval": wilson(before, clips, level), "adapted_interval": wilson(after, clips, level)}
        row |= {"diff": (after - before) / clips, "h": cohen_h(after / clips, before / clips)}
        rows.append(row | {"p": two_proportions(after, clips, before, clips)})
    adjusted = holm([r["p"] for r in rows])
    return [r | {"p_holm": float(p), "significant": bool(p < 1 - level)} for r, p in zip(rows, adjusted, strict=True)]


def _studentised(sums_G: Floats, sizes_G: Floats, resamples: int, seed: int) -> tuple[float, float, Floats]:
    """Ratio estimate, its clustered standard error, and the resampled |t| [R], sorted."""
    if len(sums_G) < 2:
        raise DataError("all clips come from one recording", "give the set's clips their source_id")
    moments = _moments(sums_G, sizes_G)
    estimate, se = _standard_error(moments.sum(axis=0, keepdims=True), len(sums_G))
    drawn = np.concatenate(list(_resampled(moments, resamples, seed)))
    again, again_se = _standard_error(drawn, len(sums_G))
    return float(estimate[0]), float(se[0]), np.sort(np.abs(again - estimate) / again_se)


def _moments(sums: Floats, sizes: Floats) -> Floats:
    """[G, 5]: all that the ratio and its linearised variance need of a cluster."""
    return np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes], axis=1)


def _standard_error(totals_R5: Floats, clusters: int) -> tuple[Floats, Floats]:
    """Ratio [R] and its standard error [R] by linearisation (Cochran 1977, section 6.4).

    A pseudo-clip is added to the squares (as Agresti & Min 2005 do to a 2 x 2 table), so that a resample in which
    no clip differs has a width.
    """
    s, n, ss, sn, nn = totals_R5.T
    ratio = s / n
    squares = np.maximum(ss - 2 * ratio * sn + ratio * ratio * nn, 0.0) * clusters / (clusters - 1)
    return ratio, np.sqrt(squares + PSEUDO_CLIPS) / n


def _resampled(moments_G5: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    """Totals [r, 5] of resamples of G clusters with replacement, in blocks that fit in memory."""
    rng = np.random.default_rng([seed, resamples])
    clusters = len(moments_G5)
    pairs = moments_G5[:, 0] + 1j * moments_G5[:, 1]  # they decide the other three, and sort as one number
    _, first, times = np.unique(pairs, return_index=True, return_counts=True)
    distinct = moments_G5[first]
    few = len(distinct) * 8 < clusters  # beyond that, drawing indices is cheaper than so many binomials
    step = max(1, BLOCK // (len(distinct) if few else clusters))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if few:
            yield rng.multinomial(clusters, times / clusters, size=size) @ distinct
        else:
            picked = rng.integers(clusters, size=(size, clusters))
            yield np.stack([column[picked].sum(axis=1) for column in moments_G5.T], axis=1)


def _critical(t_R: Floats, level: float) -> float:
    """The resampled |t| quantile, never below the normal's (few differing clips give a degenerate bootstrap)."""
    rank = min(len(t_R) - 1, math.ceil(level * (len(t_R) + 1)) - 1)
    return max(float(t_R[rank]), _normal_quantile(0.5 + level / 2))


def _two_sided(t_R: Floats, t: float) -> float:
    """Share of resamples at least as far out, the observed one counted; never below the normal's p."""
    beyond = len(t_R) - int(np.searchsorted(t_R, abs(t) * (1 - 1e-12), side="left"))
    return max((1 + beyond) / (1 + len(t_R)), math.erfc(abs(t) / math.sqrt(2)))


def _by_cluster(value_N: Floats, cluster_N: ArrayLike) -> tuple[Floats, Floats]:
    """Sum and number of clips of each cluster, [G] each."""
    cluster = np.asarray(cluster_N)
    if cluster.shape != value_N.shape:
        raise DataError(f"{len(value_N)} clips but {len(cluster)} recordings named", "give each clip its source_id")
    _, number = np.unique(cluster, return_inverse=True)
    return np.bincount(number, value_N).astype(np.float64), np.bincount(number).astype(np.float64)


def _paired(a: Floats, b: Floats) -> Floats:
    if a.shape != b.shape:
        raise DataError(f"{len(a)} clips of one encoder and {len(b)} of the other", "compare the same clips")
    return np.asarray(np.round(a - b, 12))  # so that 0.6 - 0.4 and 0.4 - 0.2 are one distinct value


def _shares(values_N: ArrayLike) -> Floats:
    values = np.asarray(values_N, np.float64)
    if values.ndim != 1 or not len(values):
        raise DataError("no clips to compare", "look at the probe set's index")
    if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
        raise DataError("correctness lies outside 0 ... 1", "give shares of right predictions")
    return values


def _normal_quantile(q: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(q)


def _binomials(n: int, k: int) -> Iterator[int]:
    """comb(n, 0) ... comb(n, k), each from the one before."""
    term = 1
    for i in range(k + 1):
        yield term
        term = term * (n - i) // (i + 1)
