"""Length: what native length costs in accuracy against 30-s padding, on a finished working copy's encoders and probes.

In    --copy: a working copy in which `export` and `index` are done (default $AUT_WORK/copies/real-mini), AUT_DATA
Out   for each set <set>_points: native less padded, in points of accuracy, mean over the encoders, both pooled over the
      frames that are audio; <set>_low, <set>_high: its 95 % interval, recordings resampled; <set>_paper_points: native
      less the mean over all 30 s, as the paper pools. Target: within 0.5 point, or said
Why   a clip alone and a clip before 20 s of silence are not the same to an encoder that was made for 30 s. The encoders
      were trained at native length here, which is in its favour; training padded ones takes hours on two cores.
Run   AUT_DATA=... python -m benchmarks.length [--quick] [--copy FOLDER] [--encoders base,adapted-0]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._common import arguments, finish, machine, say

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES, QUICK_CLIPS = 2000, 60
WAYS = ("native", "padded", "paper")


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--copy", type=Path, default=Path(os.environ.get("AUT_WORK") or ".aut") / "copies/real-mini")
    parser.add_argument("--encoders", default="base,adapted-0,control-0")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    if not (options.copy / "params.yaml").exists():
        say(f"{options.copy} is no working copy: `aut run --profile real-mini --audio FOLDER` first; nothing measured")
        finish("length", figures, False, {})
        return
    from aut.config import read_params
    from aut.layout import Layout

    params, layout = read_params(options.copy / "params.yaml"), Layout(options.copy)
    encoders = options.encoders.split(",")[: 1 if options.quick else None]
    details: dict[str, Any] = {}
    for probe_set in sorted(params.probe.sets):
        found = {e: right(params, layout, e, probe_set, options.quick) for e in encoders}
        details[probe_set] = {e: {w: float(r[w].mean() * 100.0) for w in WAYS} for e, (r, _) in found.items()}
        say(f"{probe_set}: {details[probe_set]}")
        figures |= differences(probe_set, found)
    facts = {"machine": machine("torch", "scikit-learn"), "encoders": encoders, "accuracy_percent": details}
    finish("length", figures, options.keep, facts | {"peer": "the same encoders, every clip padded to 30 s"})


def right(params: Any, layout: Any, encoder: str, probe_set: str, quick: bool) -> tuple[dict[str, Any], NDArray[Any]]:
    """For each way of embedding, share of its repeats in which each clip was told right; and the clips' recordings."""
    from aut.encoders import open_encoder
    from aut.stages.embed import read_rows

    opened = open_encoder(layout.encoder(encoder), "cpu")
    rows = read_rows(layout.index("probe", probe_set), probe_set)
    if quick:
        rows = rows.gather_every(max(1, rows.height // QUICK_CLIPS))
    source = params.sources[probe_set]
    clips = waveforms(layout.corpus_root(source.dataset, source.path), rows, params)
    vectors = {"native": opened.pooled(clips, ["valid"])["valid"], **padded(opened, clips)}
    told = {
        way: probed(params, layout, probe_set, rows.select("id", "source_id", "label", "split"), x)
        for way, x in vectors.items()
    }
    return told, rows["source_id"].to_numpy()


def waveforms(root: Path, rows: Any, params: Any) -> list[Any]:
    from aut.audio.decode import read_clip

    return [read_clip(root, row, params.embed.max_s) for row in rows.to_dicts()]


def padded(encoder: Any, clips: list[Any]) -> dict[str, NDArray[np.float32]]:
    """Two means of one pass over 30 s: over the frames that are audio, what padding alone changes; and over all."""
    import torch

    heard, whole = [], []
    for clip in clips:
        with torch.inference_mode():
            states, _ = encoder.frames(torch.from_numpy(clip)[None], torch.tensor([len(clip)]), True, False)
        frames = -(-len(clip) // round(encoder.hop_s * encoder.rate_hz))
        heard.append(states[-1][0, :frames].double().mean(0).numpy())
        whole.append(states[-1][0].double().mean(0).numpy())
    return {"padded": np.stack(heard).astype(np.float32), "paper": np.stack(whole).astype(np.float32)}


def probed(params: Any, layout: Any, probe_set: str, clips: Any, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """The set's first protocol: for each clip the share of its tests in which the probe was right."""
    from aut.probes.splits import divide
    from aut.stages import probe

    name = params.probe.sets[probe_set][0]
    protocol = params.probe.protocols[name]
    chosen = probe.select(clips, protocol, params, layout, probe_set)
    divisions = divide(
        protocol, chosen.split, chosen.y_N, chosen.group_N, chosen.labels, f"{probe_set} ({name})", params.probe.seeds
    )
    settings = params.probe.model_copy(update={"knn": 0})
    fits, _ = probe.fit_all(x_ND[chosen.kept], chosen, divisions, protocol, settings, whole=False)["linear"]
    right_N, tests_N = np.zeros(clips.height), np.zeros(clips.height)
    for fit in fits:
        test = fit.division.test
        np.add.at(right_N, chosen.kept[test], fit.predicted == chosen.y_N[test])
        np.add.at(tests_N, chosen.kept[test], 1.0)
    return np.asarray(right_N / np.maximum(tests_N, 1.0))


def differences(name: str, found: dict[str, tuple[dict[str, Any], NDArray[Any]]]) -> dict[str, float]:
    """Native less the others in points, mean over encoders, with an interval over recordings."""
    groups = next(iter(found.values()))[1]
    gap_N = np.mean([told["native"] - told["padded"] for told, _ in found.values()], axis=0) * 100.0
    paper_N = np.mean([told["native"] - told["paper"] for told, _ in found.values()], axis=0) * 100.0
    _, code_N = np.unique(groups, return_inverse=True)
    sums_G, size_G = np.bincount(code_N, gap_N), np.bincount(code_N)
    rng = np.random.default_rng(0)
    draws = rng.integers(len(size_G), size=(RESAMPLES, len(size_G)))
    low, high = np.quantile(sums_G[draws].sum(1) / size_G[draws].sum(1), [0.025, 0.975])
    points = {f"{name}_points": gap_N.mean(), f"{name}_low": low, f"{name}_high": high}
    return {k: float(v) for k, v in (points | {f"{name}_paper_points": paper_N.mean()}).items()}


if __name__ == "__main__":
    main()
