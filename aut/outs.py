"""Outs: what a stage had made before comes back when it fails.

In    a working copy, a stage as DVC names it ("mixture", "index@toy_words")
Out   its outs as dvc.lock has them, linked or copied from DVC's cache
Why   DVC removes the outs of a stage before it runs it, so a disk that fills during `mixture` would leave none. Its own
      `dvc checkout` cannot help there: it needs a lock that DVC holds until the stage has ended.
      Where there is no room for a copy a hard link stands in, read-only, until the stage runs again.
      Price: a second or two of a stage that failed; one killed -9 under a plain `dvc repro` does not get to it.
Run   the command line, when a stage fails (aut/cli/stages.py); the flow, whatever a stage died of:
      python -m aut.outs STAGE
"""

from __future__ import annotations

import sys
from pathlib import Path


def put_back(root: Path, stage: str) -> int:
    """Makes the stage's outs those of dvc.lock; how many it has there. DVC's CheckoutError for files it lost."""
    from dvc.exceptions import CacheLinkError
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        found = repo.stage.load_one(path=str(root / "dvc.yaml"), name=stage.rpartition(":")[2])
        known = [out for out in found.outs if out.hash_info and out.get_obj()]
        for out in known:
            try:
                out.checkout(force=True)
            except (OSError, CacheLinkError):
                out.remove()  # what was copied of it
                out.cache.cache_types = ["hardlink"]
                out.checkout(force=True)
        return len(known)


def put_back_or_say(root: Path, stage: str) -> None:
    """`put_back`, whose own failure must not hide what the stage failed of."""
    try:
        if put_back(root, stage):
            print(f"{stage}: its outs are again those of its last run", file=sys.stderr)  # noqa: T201
    except Exception as error:  # DVC's errors share no class
        told = " ".join(f"{type(error).__name__} {error}".split())
        print(f"{stage}: its old outs did not come back ({told}): run `dvc checkout`", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    put_back_or_say(Path.cwd(), sys.argv[1])
