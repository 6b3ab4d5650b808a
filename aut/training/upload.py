"""Upload: finished checkpoints go to a second place while the training goes on, and come back from there.

In    checkpoint folders; AUT_CHECKPOINTS, a folder or an address that fsspec opens (s3://, gs://, sftp:// ...)
Out   <AUT_CHECKPOINTS>/<stage>/<identity>/step-00000200/, the same files; digests.json is the last of them
Why   AUT_WORK is a disk, and a disk or a rented host can go. Not DVC's remote: a checkpoint is no stage's output, and
      would stay there for ever. A thread copies the newest; one that is superseded while it waits is left out, so a
      slow link delays nothing. What is half copied has no digests.json and is passed over.
      Price: hard links to the files while they are copied; the last upload is waited for, up to AUT_GRACE_S.
Run   `AUT_CHECKPOINTS=/mnt/backup aut finetune adapted 0`
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aut.errors import ConfigError
from aut.guard import grace_s
from aut.training import checkpoint

KEPT = 2  # in the second place
LINKED = ".up-"


class Uploads:
    """Nowhere to go: does nothing."""

    def fetch(self, work: Path) -> bool:
        """Brings the newest whole checkpoint back into `work`, which has none; whether any was there, whole or not."""
        return False

    def offer(self, folder: Path) -> None:
        """A finished checkpoint, to be copied when the one before has been."""

    def close(self) -> None:
        """Waits for the copy under way."""

    def discard(self) -> None:
        """The training is finished: nothing needs to be gone on with."""


class Remote(Uploads):
    """A folder of one training in a second place."""

    def __init__(self, address: str, name: str) -> None:
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"AUT_CHECKPOINTS={address} cannot be opened ({str(error).rstrip('.')})",
                f"{_package(address)}, or name a folder",
            ) from None
        self._root = f"{root.rstrip('/')}/{name}"
        self._next: Path | None = None
        self._changed, self._closing = threading.Condition(), False
        self._failed = ""
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def fetch(self, work: Path) -> bool:
        names = self._finished()
        for name in reversed(names):
            draft = work / f".{name}"
            checkpoint.clean(draft)
            self._files.get(f"{self._root}/{name}/", f"{draft}/", recursive=True)
            if checkpoint.whole(draft):
                shutil.rmtree(work / name, ignore_errors=True)  # cut short, or we would not be here
                draft.rename(work / name)
                print(f"{name} was fetched from {self._root}", file=sys.stderr)  # noqa: T201
                break
            print(f"{self._root}/{name} was cut short, and is passed over", file=sys.stderr)  # noqa: T201
            shutil.rmtree(draft)
        return bool(names)

    def offer(self, folder: Path) -> None:
        linked = folder.with_name(f"{LINKED}{folder.name}")
        shutil.rmtree(linked, ignore_errors=True)
        shutil.copytree(folder, linked, copy_function=os.link)  # the checkpoint may be removed while we copy
        with self._changed:
            superseded, self._next = self._next, linked
            self._changed.notify()
        if superseded:
            shutil.rmtree(superseded, ignore_errors=True)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=grace_s())

    def discard(self) -> None:
        if self._files.exists(self._root):
            self._files.rm(self._root, recursive=True)

    def _finished(self) -> list[str]:
        found = self._files.glob(f"{self._root}/step-*/{checkpoint.DIGESTS}")
        return sorted(str(path).split("/")[-2] for path in found)

    def _work(self) -> None:
        while (linked := self._wait()) is not None:
            try:
                self._copy(linked, linked.name.removeprefix(LINKED))
                self._failed = ""
            except Exception as error:  # whatever fails there, the training goes on, and so do later uploads
                if not self._failed:
                    print(f"a checkpoint was not uploaded to {self._root}: {error}", file=sys.stderr)  # noqa: T201
                self._failed = str(error)
            finally:
                shutil.rmtree(linked, ignore_errors=True)

    def _wait(self) -> Path | None:
        with self._changed:
            while self._next is None and not self._closing:
                self._changed.wait()
            linked, self._next = self._next, None
            return linked

    def _copy(self, folder: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        for path in sorted(files, key=lambda p: p.name == checkpoint.DIGESTS):
            place = f"{target}/{path.relative_to(folder).as_posix()}"
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path), place)
        kept = [other for other in self._finished() if other <= name]
        for old in {*self._finished()} - {*kept[-KEPT:]}:  # one ahead of us was cut short
            self._files.rm(f"{self._root}/{old}", recursive=True)


def _package(address: str) -> str:
    """What opens such addresses, as fsspec's own list has it."""
    from fsspec.registry import known_implementations

    found = known_implementations.get(address.partition("://")[0], {}).get("class", "")
    package = found.partition(".")[0]
    return f"pip install {package}" if package not in ("", "fsspec") else "write it like s3://bucket/folder"


@contextmanager
def uploads(name: str, work: Path) -> Iterator[Any]:
    """The second place of the training `name`, where AUT_CHECKPOINTS names one; its last copy is waited for.

    Hard links in `work` of a copy that was killed, each as large as a checkpoint, go.
    """
    address, first = os.environ.get("AUT_CHECKPOINTS"), os.environ.get("RANK", "0") == "0"
    for left in work.glob(f"{LINKED}*") if first else ():
        shutil.rmtree(left, ignore_errors=True)
    opened = Remote(address, name) if address and first else Uploads()
    try:
        yield opened
    finally:
        opened.close()
