"""A re-probe from cached embeddings and the embedding itself, each against what people use today.

In    synthetic vectors of the shapes of ESC-50 (official 5 folds), GTZAN (random 80/20, 10 seeds) and Speech Commands
      (a split; 6,000 clips), 1,280 wide. Their correlations fall as k^-1.5: on 400 and 660 real clips those of a small
      Whisper fell as k^-1 over the first eight directions and steeper than k^-2 after them. For embedding: 5-s clips
      of AUT_DATA/esc10 where it is there, else noise, and a randomly initialised encoder of whisper-base's shape
Out   seconds         ours, all three sets: C chosen inside each training part, then every fold and seed
      ratio_sklearn   the loop over scikit-learn's LogisticRegression (lbfgs) that most people write, over ours, on the
                      first inner part of each set: all values of C, the same tolerance, scaling and predictions
                      included. In float64: given float32 it stopped at up to 67 times the tolerance
      agree_pct       predictions of held-out clips that both give at the C that is best there, the worst set
      ratio_xares     X-ARES's own probe (benchmarks/peers/xares_probe.py) over our Adam solver: the same five folds of
                      ESC-50, a linear layer, Adam 1e-3, 10 epochs of batch 32
      embed_ratio_hf  transformers' Whisper encoder and extractor at padded 30 s over ours at native length
Why   ratios of CPU seconds in one run, so that a busy machine does not decide them, on one thread each: a second one
      mostly waits at these sizes, and waiting counts. `seconds` are CPU seconds too. Every fit is distinct.
Run   python -m benchmarks.probe [--quick] [--only PART]; X-ARES: benchmarks/peers/README.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from aut.config import Probe, Protocol, read_params
from aut.probes import adam
from aut.probes.fitting import logistic
from aut.probes.logistic import path
from aut.probes.splits import Division, divide, inner_folds
from benchmarks._common import arguments, finish, machine, say
from benchmarks._embedding import embed_ratio

HERE = Path(__file__).parent
BASIC = {"test_fold": None, "repeats": 1, "labels": None, "exclude": None, "solver": "logistic"}
SHAPES = {  # clips, classes, clips of a recording, folds, random test share
    "esc50": (2000, 50, 1, "official", None),
    "gtzan": (1000, 10, 1, 5, 0.2),
    "speech_commands": (6000, 35, 6, "split", None),
}
POWER = 1.5  # of the fall of the features' correlations
APART, FALL = 1.5, 0.5  # of the classes' means: they differ most where features vary most, so that a C of 0.1 to 1 is
# chosen, as mostly on the real clips; were they as far apart in every direction, the largest C always would be
LR, BATCH, EPOCHS = 1e-3, 32, 10  # X-ARES's
TOLERANCE = 1e-7  # conf/common.yaml's; at the demo's 1e-5 both stop early where C is large, each elsewhere
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Set = tuple[np.ndarray, np.ndarray, np.ndarray, list[Division]]


def vectors(clips: int, classes: int, each: int, width: int, official: bool) -> Vectors:
    """x [N, D], y, recordings, split."""
    rng = np.random.default_rng([clips, classes])
    group = np.arange(clips) // each
    y = rng.integers(classes, size=clips // each + 1)[group]
    rank = np.arange(1.0, width + 1.0)
    free = APART * rank**-FALL * rng.normal(size=(classes, width))[y] + rng.normal(size=(clips, width))
    x = free * rank ** (-POWER / 2) @ rng.normal(size=(width, width))
    split = np.array([f"fold{1 + g % 5}" if official else ("test" if g % 8 == 0 else "train") for g in group])
    return x.astype(np.float32), y, group, split


def sets(width: int, shrink: int, seeds: int) -> dict[str, Set]:
    found = {}
    for name, (clips, classes, each, folds, fraction) in SHAPES.items():
        x, y, group, split = vectors(clips // shrink, classes, each, width, folds == "official")
        protocol = Protocol.model_validate(BASIC | {"folds": folds, "stratified_fraction": fraction})
        labels = [str(k) for k in range(classes)]
        found[name] = (x, y, group, divide(protocol, split, y, group, labels, name, range(seeds)))
    return found


def one(x: np.ndarray, y: np.ndarray, train: np.ndarray, c: float, tolerance: float) -> tuple[Any, Any]:
    """scikit-learn's scaler and model, as in its examples; in float32 it stops far from the tolerance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    part = x[train].astype(np.float64)
    scaler = StandardScaler().fit(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the iteration limit: it is generous
        return scaler, LogisticRegression(C=c, tol=tolerance, max_iter=5000).fit(scaler.transform(part), y[train])


def gradient(z: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, c: float) -> float:
    """The largest entry of the objective's gradient, in float64, whoever found the weights."""
    logits = z @ weight.T.astype(np.float64) + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), np.unique(y, return_inverse=True)[1]] -= 1.0
    return float(max(np.abs(p.T @ z / len(y) + weight / (c * len(y))).max(), np.abs(p.mean(axis=0)).max()))


def against_sklearn(found: dict[str, Set], settings: Probe) -> tuple[dict[str, float], dict[str, Any]]:
    """The first inner part of each set at every C: figures, and what they rest on."""
    facts: dict[str, dict[str, Any]] = {}
    for name, (x, y, group, divisions) in found.items():
        fit, held = inner_folds(divisions[0].train, y, group, settings.inner_folds)[0]
        start = time.process_time()
        ours = list(path(x[fit], y[fit], int(y.max()) + 1, sorted(settings.c_grid), settings.tolerance))
        told = np.stack([head.predict(x[held]) for head in ours])
        mine = time.process_time() - start
        start = time.process_time()
        theirs = [one(x, y, fit, head.c, settings.tolerance) for head in ours]
        theirs_told = np.stack([model.predict(scaler.transform(x[held])) for scaler, model in theirs])
        peer = time.process_time() - start
        best = int((told == y[held]).mean(axis=1).argmax())
        same = 100.0 * (told == theirs_told).mean(axis=1)
        z = theirs[0][0].transform(x[fit].astype(np.float64))
        known = theirs[0][1].classes_
        left = [gradient(z, y[fit], h.weight[known], h.bias[known], h.c) for h in ours]
        left_there = [gradient(z, y[fit], m.coef_, m.intercept_, h.c) for h, (_, m) in zip(ours, theirs, strict=True)]
        facts[name] = {"clips": len(fit), "cpu_s": mine, "sklearn_cpu_s": peer, "chosen_c": ours[best].c}
        facts[name] |= {"agree_pct": float(same[best]), "agree_pct_each_c": same.tolist(), "gradients": left}
        facts[name] |= {"gradients_sklearn": left_there, "accuracy": float((told[best] == y[held]).mean())}
        say(f"{name}: {mine:.2f} s of CPU, scikit-learn {peer:.2f} s; {same.round(2)} % equal at each C")
    ratio = sum(f["sklearn_cpu_s"] for f in facts.values()) / sum(f["cpu_s"] for f in facts.values())
    return {"ratio_sklearn": ratio, "agree_pct": min(f["agree_pct"] for f in facts.values())}, facts


def reprobe(found: dict[str, Set], settings: Probe) -> tuple[dict[str, float], dict[str, Any]]:
    """Every division of every set, C chosen inside its training part."""
    facts: dict[str, dict[str, Any]] = {}
    for name, (x, y, group, divisions) in found.items():
        start = time.process_time()
        fits, _ = logistic(x, y, group, divisions, int(y.max()) + 1, settings, False)
        right = [(f.predicted == y[f.division.test]).mean() for f in fits]
        facts[name] = {"divisions": len(divisions), "cpu_s": time.process_time() - start}
        facts[name] |= {"accuracy": float(np.mean(right)), "c": [f.c for f in fits]}
        say(f"{name}: {len(divisions)} divisions, {facts[name]['cpu_s']:.1f} s of CPU")
    return {"seconds": sum(f["cpu_s"] for f in facts.values())}, facts


def against_xares(data: Set, folds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """X-ARES's probe in its own environment, and ours on the same vectors and folds; empty where it is missing.

    With fewer folds their clips are the whole set.
    """
    python = Path(os.environ.get("AUT_PEERS") or HERE / "peers/.suites") / "bin/python"
    tests = [d.test for d in data[3][:folds]]
    kept = np.concatenate(tests)
    x, y, fold = data[0][kept], data[1][kept], np.repeat(np.arange(folds).astype(str), [len(t) for t in tests])
    parts = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "esc50.npz", x=x, y=y, fold=fold)
        command = [str(python), str(HERE / "peers/xares_probe.py"), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if python.exists() else None
    if done is None or done.returncode:
        say(f"peer missing: xares {done.stderr.splitlines()[-1:] if done else '(see benchmarks/peers/README.md)'}")
        return {}, {}
    theirs, score = json.loads(done.stdout.splitlines()[-1])["esc50"]
    start = time.process_time()
    weight, bias = adam.fit(x, y, [train for train, _ in parts], [0] * folds, int(y.max()) + 1, LR, BATCH, EPOCHS)
    mine = time.process_time() - start
    right = [(x[test] @ w.T + b).argmax(1) == y[test] for (_, test), w, b in zip(parts, weight, bias, strict=True)]
    facts = {
        "seconds": mine,
        "xares_s": theirs,
        "accuracy": float(np.concatenate(right).mean()),
        "xares_accuracy": score,
        "folds": folds,
    }
    say(f"esc50, Adam, 10 epochs, {folds} folds: {mine:.2f} s, X-ARES {theirs:.2f} s")
    return {"ratio_xares": theirs / mine}, facts


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("sklearn", "reprobe", "xares", "embed"), help="one of the comparisons")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # for what is loaded or started from here on; numpy is already there
    with threadpool_limits(1):
        measure(options)


def measure(options: argparse.Namespace) -> None:
    settings = read_params(HERE.parent / "params.yaml").probe.model_copy(update={"tolerance": TOLERANCE})
    width, shrink, seeds = (256, 4, 2) if options.quick else (1280, 1, 10)
    found = sets(width, shrink, seeds)
    figures: dict[str, float] = {}
    facts: dict[str, Any] = {"machine": machine("numpy", "scikit-learn", "torch", "transformers"), "width": width}
    facts |= {"threads": 1, "tolerance": settings.tolerance}
    if options.only in (None, "sklearn"):
        more, facts["sklearn"] = against_sklearn(found, settings)
        figures |= more
    if options.only in (None, "reprobe"):
        more, facts["reprobe"] = reprobe(found, settings)
        figures |= more
    if options.only in (None, "xares"):
        more, facts["xares"] = against_xares(found["esc50"], 2 if options.quick else 5)
        figures |= more
    if options.only in (None, "embed"):
        more, facts["embed"] = embed_ratio(2 if options.quick else 32)
        figures |= more
    facts["peer"] = "scikit-learn LogisticRegression; xares 0.1.3; transformers WhisperEncoder"
    finish("probe", figures, options.keep, facts)


if __name__ == "__main__":
    main()
