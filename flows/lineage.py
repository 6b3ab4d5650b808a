"""The chain from a flow run to its MLflow run: opened before the first stage, closed with what brings it back.

Kept with the parent run, under `reproduce/`: params.yaml, dvc.lock, the corpora's inventories, and the edits
that git does not have. That is all `aut restore` needs besides the commit and the DVC remote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aut.config import Params
from aut.edges import artifacts, tracking
from aut.files import read_json
from aut.layout import Layout
from aut.workcopy import command, revision
from flows.reproduce import Outcome

REPRODUCE = "reproduce"
WAIT_S, FAILED_WAIT_S = 300.0, 20.0


@dataclass(frozen=True)
class Lineage:
    """One parent MLflow run and the working copy it describes."""

    uri: str
    run_id: str
    layout: Layout
    flow_run: str

    @classmethod
    def begin(
        cls, checkout: Path, layout: Layout, params: Params, flow_run: str | None, version: str | None
    ) -> Lineage:
        """Migrates the store and opens the parent run, before any stage can write."""
        uri = tracking.resolve_uri(tracking.embedded_uri(layout))
        tracking.insist(uri, lambda: tracking.ready(uri, layout))
        tracking.send_leftovers(uri, layout)
        if flow_run:
            tracking.close_abandoned(uri, flow_run)
        tags = {"aut.revision": revision(checkout), "aut.profile": params.profile}
        tags |= {"aut.flow_run": flow_run} if flow_run else {}
        tags |= {"aut.from_version": version} if version else {}
        run_id = tracking.open_parent(uri, params, layout, tags)
        lineage = cls(uri, run_id, layout, flow_run or "")
        lineage.keep("params.yaml")
        return lineage

    @contextmanager
    def shipping(self, part: str = "flow") -> Iterator[dict[str, str]]:
        """The environment that ties stages to this run, while what they report is sent on.

        `part` keeps the spools of two hosts (or flow runs) that share AUT_WORK apart. A server that is away when the
        stages have ended is waited for: who looks at a completed run finds all its points.
        """
        spool = self.layout.work / "spool" / self.run_id / part
        with tracking.Shipper(self.uri, self.run_id, spool, WAIT_S, FAILED_WAIT_S):
            yield {
                "AUT_WORK": str(self.layout.work),
                "AUT_SPOOL": str(spool),
                "AUT_PARENT_RUN": self.run_id,
                "AUT_FLOW_RUN": self.flow_run,
                "MLFLOW_TRACKING_URI": self.uri,
            }

    def end(self, status: str, outcomes: Sequence[Outcome] = ()) -> None:
        """Keeps what restores the run, links cached stages to the runs that made them, closes it.

        A run whose work is done waits some minutes for a server that is away; one that failed hardly.
        """
        tracking.insist(
            self.uri, lambda: self._end(status, outcomes), WAIT_S if status == "FINISHED" else FAILED_WAIT_S
        )

    def _end(self, status: str, outcomes: Sequence[Outcome]) -> None:
        self.keep("params.yaml", "dvc.lock", "data/corpora")
        artifacts.log_text(self.uri, self.run_id, edits(self.layout.root), f"{REPRODUCE}/edits.patch")
        links = {f"aut.cached.{o.stage}": self._maker(o.stage) for o in outcomes if o.how == "cached"}
        artifacts.set_tags(self.uri, self.run_id, {k.replace("@", "/"): v for k, v in links.items() if v})
        tracking.tag_outs(self.uri, self.layout)
        tracking.close_parent(self.uri, self.run_id, status)

    def keep(self, *names: str) -> None:
        for name in names:
            path = self.layout.root / name
            if path.exists():
                self._log(path, f"{REPRODUCE}/{Path(name).parent}".removesuffix("/."))

    def keep_lock(self, folder: str) -> None:
        """This working copy's dvc.lock, kept with the parent run."""
        self._log(self.layout.root / "dvc.lock", folder)

    def fetch_lock(self, folder: str) -> bytes:
        """A dvc.lock kept with the parent run by this or another host."""
        with tempfile.TemporaryDirectory() as scratch:
            path = tracking.insist(self.uri, lambda: artifacts.download(self.uri, self.run_id, folder, Path(scratch)))
            return (path / "dvc.lock").read_bytes()

    def _log(self, path: Path, folder: str) -> None:
        tracking.insist(self.uri, lambda: artifacts.log_artifact(self.uri, self.run_id, path, folder))

    def _maker(self, stage: str) -> str:
        record = self.layout.root / "data/runs" / f"{stage}.json"
        return str(read_json(record).get("run_id") or "") if record.exists() else ""


def edits(root: Path) -> str:
    """What the working copy has beyond its commit, new files included, as a patch `git apply` takes."""
    command(["git", "add", "-A", "-N", "."], root)
    return command(["git", "diff", "--binary", "HEAD", "--", ".", ":!params.yaml", ":!dvc.lock", ":!data"], root)
