"""Writer: a checkpoint goes to the disk while the training goes on.

In    an engine's snapshot and the loop's State; AUT_WORK/<stage>/<identity>
Out   <work>/step-00000200/ (checkpoint.py), offered to the second place once it is whole
Why   a large model's checkpoint is 18.5 GB: ten seconds of a fast disk and twenty of a digest, for which all GPUs
      would wait. So tensors are copied to host memory and a thread writes, digests and renames them; the next
      checkpoint, the end and a stop wait for it. Where the copy has no room the training waits, said once.
      Price: the copy, in the memory of the process that writes; a kill while it writes costs the steps since the
      checkpoint before. So the loop makes one every half of `checkpoint_every`, which is then the most that is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from aut.training import checkpoint
from aut.training.checkpoint import State
from aut.training.upload import Uploads

ROOM = 2  # times the copy must fit into free memory: the loader and the libraries want some of it, too
CGROUP = Path("/sys/fs/cgroup")


class Writer:
    """The checkpoints of one training, one at a time. What failed is raised in whoever asks next."""

    def __init__(self, work: Path, keep: int, uploads: Uploads) -> None:
        self._work, self._keep, self._uploads = work, keep, uploads
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._said = False

    def has_room(self, copy_b: int) -> bool:
        """Whether a copy of so many bytes may be made."""
        free_b = free_memory_b()
        if copy_b * ROOM <= free_b:
            return True
        if not self._said:
            said = f"a copy of {copy_b / 1e9:.1f} GB, {free_b / 1e9:.1f} GB of memory are free"
            print(f"the training waits for its checkpoints: no room for {said}", file=sys.stderr)  # noqa: T201
        self._said = True
        return False

    def write(self, files: Mapping[str, Any], state: State) -> None:
        """Begins to write once the one before stands; `files` are the thread's own from now on, `state` is not."""
        self.wait()
        self._under_way = self._pool.submit(self._write, files, deepcopy(state))

    def look(self) -> None:
        """Raises what failed, if anything has."""
        if self._under_way and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until the last one stands."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def _write(self, files: Mapping[str, Any], state: State) -> None:
        self._uploads.offer(checkpoint.write(self._work, files, state, self._keep))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(Exception) if kind else nullcontext():  # what ended the training is told, not this
            self.wait()
        self._pool.shutdown()


def free_memory_b() -> int:
    """Bytes that may be taken, file caches counted as free: the machine's, or a container's where it has fewer."""
    import psutil

    free_b = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, KeyError):  # no control group here, or none with a limit
        limit_b, used_b = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used_b -= int(held["active_file"]) + int(held["inactive_file"])
        free_b = min(free_b, limit_b - used_b)
    return free_b
