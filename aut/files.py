"""Files that are whole or absent, digests, and locks that name their holder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from aut.errors import AutError, Busy, DataError, MissingInput

DIGEST_BYTES = 16


def digest_bytes(*parts: bytes) -> str:
    """blake2b-128 of the parts, each preceded by its length, hex."""
    h = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.hexdigest()


def digest_json(value: Any) -> str:
    """Digest of a JSON value; key order does not matter."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())


class Digesting:
    """A binary file whose bytes are digested on their way to it, in order: no second read tells what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.blake2b(digest_size=DIGEST_BYTES)

    def write(self, block: bytes | memoryview) -> int:
        self._hash.update(block)
        return self._file.write(block)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        """What `digest_file` will say of the file."""
        return self._hash.hexdigest()


def digest_file(path: Path) -> str:
    """blake2b-128 of a file's bytes, read in blocks of 1 MiB."""
    h = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def digest_tree(path: Path) -> str:
    """Digest of a file, or of a folder's relative names and contents."""
    if path.is_file():
        return digest_file(path)
    if not path.is_dir():
        raise MissingInput(f"{path} is missing", "run the stage that writes it, or `dvc repro`")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest_json([[p.relative_to(path).as_posix(), digest_file(p)] for p in files])


def digest_code(*parts: str) -> str:
    """Digest of modules of this package, given as files or folders relative to it; for keys of caches."""
    root = Path(__file__).parent
    files = [
        p for part in parts for p in ([root / part] if part.endswith(".py") else sorted((root / part).glob("*.py")))
    ]
    return digest_json([[p.relative_to(root).as_posix(), digest_file(p)] for p in files if p.exists()])


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` in one rename; a full disk leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def write_json(path: Path, value: Any) -> None:
    """Sorted, indented JSON with a final newline: the same value is the same bytes."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingInput(f"{path} is missing", "run the stage that writes it, or `dvc repro`") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}", "delete it and run its stage again") from None


@contextmanager
def replacing(out: Path, draft: Path | None = None) -> Iterator[Path]:
    """A folder to write into; on success it takes the place of `out`, on failure `out` stays as it was.

    `draft` may name a folder that survives a failure (resumable work on the same file system or not);
    without it a temporary one beside `out` is used and removed, by the next writer if this one is killed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    folder = draft or Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _held(folder):
            yield folder
        _swap(folder, out)
    finally:
        if draft is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder itself; OSError where a live process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sweep(out: Path) -> None:
    """Removes drafts whose writer was killed, which may be gigabytes: a live writer holds its own."""
    drafts = re.compile(re.escape(f".{out.name}.") + "[a-z0-9_]{8}")
    for folder in out.parent.iterdir():
        if drafts.fullmatch(folder.name) and folder.is_dir():
            with suppress(OSError), _held(folder):
                shutil.rmtree(folder)


def _swap(folder: Path, out: Path) -> None:
    if folder.stat().st_dev != out.parent.stat().st_dev:
        beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        shutil.rmtree(folder)
        folder = beside
    os.chmod(folder, 0o755)  # noqa: S103 - mkdtemp gives 0700; an artefact is read by other users
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        os.rename(out, old)
    os.rename(folder, out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds an advisory lock for the block. `Busy` names the live holder's pid.

    The kernel drops the lock when the process dies, so a kill -9 leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            f.seek(0)
            holder = f.read().strip() or "unknown"
            raise Busy(f"{what} is already running as process {holder}", "wait for it, or stop that process") from None
        f.seek(0)
        f.truncate()
        f.write(str(os.getpid()))
        f.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether a live process holds `path` by `locked`."""
    with suppress(FileNotFoundError), path.open("rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def no_room(error: BaseException, folders: Iterable[Path]) -> AutError | None:
    """What to say where a disk or a quota was full, by any library's error; None where it was not.

    `folders` are those that may have been written to: few errors of a write name a file, so the fullest is named.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not full and "No space left on device" not in str(error):  # polars and safetensors keep no number
        return None
    named = getattr(error, "filename", None)
    known = [Path(os.fsdecode(named)).absolute()] if isinstance(named, str | bytes) else [p.absolute() for p in folders]
    there = {next(p for p in (folder, *folder.parents) if p.is_dir()) for folder in known}
    free, folder = min((shutil.disk_usage(p).free, p) for p in there)
    return AutError(
        f"no room left to write in {folder}, {free / 1e6:,.0f} MB are free there now",
        "make room and run it again: finished work is kept",
    )


def tail_lines(path: Path, count: int) -> Iterable[str]:
    """The last lines of a text file, for error messages."""
    with suppress(FileNotFoundError):
        return path.read_text(errors="replace").splitlines()[-count:]
    return []
