"""Versioning: bytes that DVC would upload after a change to the mixture, and `dvc status` when nothing changed.

In    a synthetic index (benchmarks/_pool.py) with one source of 1 % of the mixture
Out   add_source_pct (a source of 1 % added), recaption_pct (a 1 % source re-captioned), block_pct (0.05 % of the rows
      blocked), each as percent of the mixture's bytes; one_file_*, the same changes where the mixture is one Parquet
      file, its peer; status_s, of a project that tracks the mixture and nothing else (`dvc add data/mixture`);
      pipeline_status_s, where a stage with index and fingerprints as deps comes on top. With --quick also what is not
      promised: recaption_scattered_pct and recaption_clustered_pct (1 % of the clips of the largest source, taken all
      over it or in one run of ids), whose rows the hash spreads over all of that source's parts
Why   DVC uploads a file whole when one byte of it changed: both are written, and their objects compared by content.
      What is unchanged DVC knows by name, size and time: fingerprints are as many files as at full size, of a few bytes
Run   python -m benchmarks.versioning [--quick] [--keep] [--folder FOLDER with an index of benchmarks.mixture]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aut.config import Params
from aut.contracts import Silent
from aut.files import digest_file
from aut.layout import Layout
from aut.stages.mixture import mixture
from aut.units import Domain
from benchmarks import _pool as pool
from benchmarks._common import arguments, finish, machine, say
from benchmarks.mixture import FULL, PARTS, ROWS

SMALL, QUICK, QUICK_PARTS = "small", 20, 128  # smaller parts would measure Parquet footers, larger ones thresholds
SHARE, BLOCKED = 0.01, 0.0005  # 200,000 and 10,000 of 20M rows
Digests = dict[str, tuple[str, int]]


def digests(folder: Path) -> Digests:
    """File -> (digest, bytes)."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): (digest_file(p), p.stat().st_size) for p in files}


def uploaded_pct(before: Digests, after: Digests) -> float:
    """Bytes of objects the remote lacks, and of DVC's listing of the folder, as percent of the folder."""
    have = {d for d, _ in before.values()}
    new = sum({d: size for d, size in after.values() if d not in have}.values())
    listing = sum(len(json.dumps({"md5": d, "relpath": name})) + 2 for name, (d, _) in after.items())
    return 100 * (new + listing) / sum(size for _, size in after.values())


class Bench:
    """One mixture that is changed and put back."""

    def __init__(self, root: Path, shrink: int) -> None:
        self.layout, self.shrink, self.rows = Layout(root), shrink, ROWS // shrink
        self.small = round(self.rows * SHARE)
        sources = FULL | {"speech": FULL["speech"] | dict.fromkeys((SMALL, "added"), self.small * shrink)}
        for domain, names in sources.items():
            for name, rows in names.items():
                if not self.layout.index(domain, name).exists():
                    pool.source(self.layout, domain, name, rows // shrink)
        pool.block(self.layout, [])
        self.before, self.one_file = self.digests(SMALL), self.joined()

    def params(self, *extra: str) -> Params:
        sources: dict[Domain, list[str]] = {d: list(names) for d, names in FULL.items()}
        sources["speech"] += extra
        return pool.params(sources, rows=self.rows, window=100, parts=PARTS if self.shrink == 1 else QUICK_PARTS)

    def digests(self, *extra: str) -> Digests:
        mixture(self.params(*extra), self.layout, Silent())
        return digests(self.layout.mixture)

    def _measured(self, name: str, *extra: str) -> dict[str, float]:
        after = self.digests(*extra)
        own, peer = uploaded_pct(self.before, after), uploaded_pct(self.one_file, self.joined())
        return {f"{name}_pct": own, f"one_file_{name}_pct": peer}

    def added(self) -> dict[str, float]:
        return self._measured("add_source", SMALL, "added")

    def recaptioned(self) -> dict[str, float]:
        pool.source(self.layout, "speech", SMALL, self.small, recaption="all")
        found = self._measured("recaption", SMALL)
        pool.source(self.layout, "speech", SMALL, self.small)
        return found

    def blocked(self) -> dict[str, float]:
        rows = FULL["speech"]["s0"] // self.shrink
        count = round(self.rows * BLOCKED)
        pool.block(self.layout, [pool.clip_id("s0", r) for r in range(0, rows, rows // count)][:count])
        found = self._measured("block", SMALL)
        pool.block(self.layout, [])
        return found

    def recaptioned_here_and_there(self, how: str) -> dict[str, float]:
        """1 % of the largest source's clips."""
        rows = FULL["speech"]["s0"] // self.shrink
        pool.source(self.layout, "speech", "s0", rows, recaption=how)
        after = self.digests(SMALL)
        pool.source(self.layout, "speech", "s0", rows)
        return {f"recaption_{how}_pct": uploaded_pct(self.before, after)}

    def joined(self) -> Digests:
        """The mixture's rows, less blocked ones, as one file."""
        import polars as pl

        rows = pl.scan_parquet(self.layout.mixture / "**/part-*.parquet")
        dead = pl.scan_parquet(self.layout.mixture / "tombstones.parquet").select("id")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixture.parquet"
            rows.join(dead, on="id", how="anti", maintain_order="left").sink_parquet(path, compression="snappy")
            return digests(Path(folder))

    def status_s(self) -> dict[str, float]:
        """Seconds of `dvc status`, asked again, of a project that tracks the mixture, then of one with a stage, too."""
        root = self.layout.root
        own = {"DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(root), "DVC_SITE_CACHE_DIR": str(root / "site")}

        def dvc(*words: str) -> None:
            subprocess.run(
                [sys.executable, "-m", "dvc", *words, "-q"],
                cwd=root,
                check=True,
                env=os.environ | own,
                stdout=sys.stderr,
            )

        def status() -> float:
            start = time.perf_counter()
            dvc("status")
            return time.perf_counter() - start

        dvc("init", "--no-scm")
        dvc("add", "data/mixture")
        dvc("status")
        alone = status()
        for part in (root / "data/index").rglob("part-*.parquet"):
            fingerprints = root / "data/fingerprints" / part.relative_to(root / "data/index")
            fingerprints.parent.mkdir(parents=True, exist_ok=True)
            fingerprints.write_text(part.as_posix())
        stage = {"cmd": "true", "deps": ["data/index", "data/fingerprints"]}
        (root / "dvc.yaml").write_text(json.dumps({"stages": {"screen": stage}}))
        dvc("commit", "-f", "screen")
        return {"status_s": alone, "pipeline_status_s": status()}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, help="has an index, and is used; its mixture is written anew")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args.folder or Path(temporary), QUICK if args.quick else 1)
        work: list[Callable[[], dict[str, float]]] = [bench.added, bench.recaptioned, bench.blocked]
        if args.quick:
            work += [partial(bench.recaptioned_here_and_there, how) for how in ("scattered", "clustered")]
        figures: dict[str, float] = {}
        for measure in [*work, bench.status_s]:
            found = measure()
            say(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
            figures |= found
    changed = {"added": bench.small, "recaptioned": bench.small, "blocked": round(bench.rows * BLOCKED)}
    facts = {
        "rows": {"selected": bench.rows, **changed},
        "bytes": {"mixture": _bytes(bench.before), "one_file": _bytes(bench.one_file)},
        "machine": machine("dvc", "pyarrow", "polars"),
        "load_average_1min": round(os.getloadavg()[0], 1),
        "peer": "one Parquet file under DVC, of the same rows: one_file_*",
    }
    finish("versioning", figures, args.keep, facts)


def _bytes(files: Digests) -> int:
    return sum(size for _, size in files.values())


if __name__ == "__main__":
    main()
