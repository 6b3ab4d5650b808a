"""Sources: what can be read, what of a folder would be, and the inventory that `index` depends on.

In    a corpus' folder, or a source named in params
Out   cards, a Check, data/corpora/<source>.json: files, bytes, and a digest over names and sizes, and over the
      contents of metadata files (tables, lists, transcripts, published checksums)
Why   a corpus of 20M files is no DVC dependency: hashing it costs a day. Digests of single files are added up, so their
      order does not matter and memory stays that of one folder's handle. Price: audio that was replaced by other audio
      of the same size goes unseen here; `index`, when it runs, refuses it.
Run   aut sources; aut sources check PATH; aut sources scan
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aut.config import Params
from aut.contracts import Card, Clip
from aut.datasets import check_options, is_generated, list_clips, names, open_dataset
from aut.errors import DataError, MissingInput
from aut.files import digest_json, read_json, write_json
from aut.layout import Layout
from aut.progress import progress

METADATA = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".gz", ".parquet", ".md5", ".sha256", ".sha1")
EXAMPLES = 5


@dataclass
class Check:
    """What a listing of a folder says: `rows` would be read; `refused` would not, counted by reason."""

    dataset: str
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    with_text: int = 0
    examples: list[Clip] = field(default_factory=list)
    refused_examples: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, reason, detail) of the first few."""


def cards() -> list[Card]:
    """One card a layout, sorted by name."""
    return [open_dataset(name).CARD for name in names()]


def recognise(root: Path) -> str:
    """Name of the layout that a folder has. DataError where none, or more than one, fits."""
    if not root.is_dir():
        raise MissingInput(f"{root} is no folder", "give the folder that the download unpacks to")
    fits = [n for n in names() if getattr(open_dataset(n), "matches", _never)(root)]
    if len(fits) != 1:
        found = f"could be {' or '.join(fits)}" if fits else "has the layout of no known dataset"
        raise DataError(f"{root} {found}", f"name one: {', '.join(names())}")
    return fits[0]


def _never(root: Path) -> bool:
    return False


def check(root: Path, dataset: str | None = None, options: Mapping[str, Any] | None = None) -> Check:
    """Lists a folder and looks whether the files are there; decodes nothing."""
    found = Check(dataset or recognise(root))
    keys: set[int] = set()
    with progress(f"check {root.name}", None) as advance:
        for clip in list_clips(found.dataset, root, options or {}):
            _count(found, root, clip, keys)
            advance(1)
    return found


def _count(found: Check, root: Path, clip: Clip, keys: set[int]) -> None:
    reason, detail = _refusal(root, clip)
    if not reason and hash(clip.key) in keys:
        reason, detail = "duplicate_id", "an earlier row has the same key"
    keys.add(hash(clip.key))
    if reason:
        found.refused[reason] += 1
        if len(found.refused_examples) < EXAMPLES:
            found.refused_examples.append((clip.key, reason, detail))
        return
    found.rows += 1
    found.with_text += bool(clip.text)
    for counter, value in ((found.labels, clip.label), (found.splits, clip.split), (found.licences, clip.licence)):
        if value:
            counter[value] += 1
    if len(found.examples) < EXAMPLES:
        found.examples.append(clip)


def _refusal(root: Path, clip: Clip) -> tuple[str, str]:
    if "refused" in clip.extra:
        return clip.extra["refused"], clip.extra.get("detail", "")
    if Path(clip.uri).is_absolute() or ".." in Path(clip.uri).parts:
        return "unsafe_path", clip.uri
    try:
        return ("", "") if (root / clip.uri).stat().st_size else ("empty", f"{clip.uri} has 0 bytes")
    except OSError:
        return "missing", f"{clip.uri} is not there"


def scan(params: Params, layout: Layout, source: str, accept_changed: bool = False) -> dict[str, Any]:
    """Writes and returns the inventory of a source. DataError where its folder holds no file.

    `accept_changed` begins a new edition: files may hold other audio under their old names, so ids do too.
    """
    if source not in params.sources:
        raise DataError(f"params name no source '{source}'", f"choose one of {', '.join(sorted(params.sources))}")
    s = params.sources[source]
    check_options(s.dataset, s.options)
    if is_generated(s.dataset):
        # What it will be is known before it is written: a fresh clone needs no file.
        version = getattr(open_dataset(s.dataset), "VERSION", 0)
        found: dict[str, Any] = {"digest": digest_json([s.dataset, s.options, version])}
    else:
        found = _inventory(layout.corpus_root(s.dataset, s.path), source)
    inventory = {"source": source, "dataset": s.dataset, **found}
    if edition := _edition(layout.corpus(source)) + accept_changed:
        inventory["edition"] = edition
    write_json(layout.corpus(source), inventory)
    return inventory


def _edition(inventory: Path) -> int:
    """How often changes under old names were accepted; kept from scan to scan."""
    return int(read_json(inventory).get("edition", 0)) if inventory.exists() else 0


def _inventory(root: Path, source: str) -> dict[str, Any]:
    if not root.is_dir():
        raise MissingInput(f"the corpus folder {root} is missing", "set AUT_DATA, or mend the source's path in params")
    files = size = total = 0
    with progress(f"scan {source}", None) as advance:
        for name, entry in _walk(str(root), "", ()):
            bytes_ = entry.stat().st_size
            content = _digest(entry.path) if name.lower().endswith(METADATA) else b""
            one = hashlib.blake2b(f"{name}\0{bytes_}\0".encode("utf-8", "surrogateescape") + content, digest_size=32)
            total += int.from_bytes(one.digest(), "little")
            files, size = files + 1, size + bytes_
            advance(1)
    if not files:
        raise DataError(f"{root} holds no file", "set AUT_DATA, or mend the source's path in params")
    digest = hashlib.blake2b((total % (1 << 256)).to_bytes(32, "little"), digest_size=16).hexdigest()
    return {"files": files, "bytes": size, "digest": digest}


def _digest(path: str) -> bytes:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "blake2b").digest()


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative name, entry) of each file; hidden names are left out, links followed, a loop of links once."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
            elif entry.is_file():  # a link to nothing is not a file
                yield prefix + entry.name, entry
