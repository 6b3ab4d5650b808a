"""Where things lie. Paths of artefacts are relative to a working copy; the rest is placement.

AUT_DATA    root of the corpora, may be read-only
AUT_WORK    work in progress, embedded stores, caches: outside every output (default: .aut in the checkout)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aut.errors import ConfigError
from aut.units import Role

RESTORING = "AUT_RESTORING"
REGISTERED = "AUT_REGISTERED"  # where the verb `base` put a registered version for the stage
"""Set while a restore runs `dvc repro --pull`: a stage that would have to compute refuses instead."""


@dataclass(frozen=True)
class Layout:
    """Paths of one working copy. Everything below `root` is an artefact or its code."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    def corpus(self, source: str) -> Path:
        return self.root / "data/corpora" / f"{source}.json"

    def index(self, role: Role, source: str) -> Path:
        """Folder of part-*.parquet, quarantine.parquet, summary.json."""
        return self.root / "data/index" / role / source

    def fingerprints(self, role: Role, source: str) -> Path:
        return self.root / "data/fingerprints" / role / source

    @property
    def exclude(self) -> Path:
        """Ids that a person leaves out; committed."""
        return self.root / "data/exclude.txt"

    @property
    def screen(self) -> Path:
        """blocklist.parquet, flagged.parquet, report.json, report.html."""
        return self.root / "data/screen"

    @property
    def mixture(self) -> Path:
        return self.root / "data/mixture"

    def model(self, name: str) -> Path:
        """Checkpoint of a starting encoder or of <arm>-<seed>, decoder included where it has one."""
        return self.root / "models" / name

    def encoder(self, name: str) -> Path:
        """Exported encoder folder: encoder.json, config.json, model.safetensors, preprocessor_config.json."""
        return self.root / "models/encoders" / name

    def embeddings(self, encoder: str, probe_set: str) -> Path:
        return self.root / "data/embeddings" / encoder / probe_set

    def probe(self, encoder: str, probe_set: str) -> Path:
        return self.root / "data/probe" / encoder / probe_set

    @property
    def evidence(self) -> Path:
        """evidence.json, report.html, plots/."""
        return self.root / "reports/compare"

    @property
    def registered(self) -> Path:
        return self.root / "reports/register"

    def metrics(self, stage: str, item: str = "") -> Path:
        return self.root / "reports/metrics" / (f"{stage}@{item}.json" if item else f"{stage}.json")

    def plot(self, stage: str, item: str = "") -> Path:
        """CSV behind `dvc plots show`."""
        return self.root / "reports/plots" / (f"{stage}@{item}.csv" if item else f"{stage}.csv")

    def run_record(self, stage: str, item: str = "") -> Path:
        return self.root / "data/runs" / (f"{stage}@{item}.json" if item else f"{stage}.json")

    @property
    def work(self) -> Path:
        """AUT_WORK: absolute, created on use, shared by all working copies of this machine."""
        return Path(os.environ.get("AUT_WORK") or self.root / ".aut").resolve()

    def corpus_root(self, dataset: str, path: str) -> Path:
        """Folder of a corpus: below AUT_DATA, or below AUT_WORK where `aut` generates it."""
        if dataset == "toy":
            return self.work / "corpora" / path
        data = os.environ.get("AUT_DATA")
        if not data:
            raise ConfigError(
                f"AUT_DATA is not set, so the corpus '{path}' has no root",
                "set AUT_DATA to the folder that holds the corpora, or pass --audio",
            )
        return Path(data).expanduser().resolve() / path


def here() -> Layout:
    """The working copy that holds the current folder (it has `dvc.yaml` and `params.yaml`)."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "dvc.yaml").exists() and (folder / "params.yaml").exists():
            return Layout(folder)
    raise ConfigError("no dvc.yaml and params.yaml here or above", "run from a checkout of aut")
