"""Sources: what can be read, what of a folder would be, and the inventory that `index` depends on.

In    a corpus' folder, or a source named in params
Out   cards, a Check, data/corpora/<source>.json: files, bytes, and a digest over names and sizes, and over the
      contents of metadata files (tables, lists, transcripts, published checksums)
Why   a corpus of 20M files is no DVC dependency: hashing it costs a day. Digests of single files are added up, so their
      order does not matter and memory stays that of one folder's handle. Price: audio that was replaced by other audio
      of the same size goes unseen here; `index`, when it runs, refuses it.
Run   aut sources; aut sources check SOURCE or PATH; aut sources scan
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.config import Params
from aut.contracts import Card, Clip
from aut.datasets import check_options, is_generated, list_clips, names, open_dataset
from aut.errors import DataError, MissingInput
from aut.files import digest_json, read_json, write_json
from aut.layout import Layout
from aut.progress import progress
from aut.units import DECODER_TOKENS

if TYPE_CHECKING:
    from aut.datasets._rows import Policy

METADATA = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".gz", ".parquet", ".md5", ".sha256", ".sha1")
EXAMPLES = 5


@dataclass
class Check:
    """What a listing of a folder says: `rows` would be read; `refused` would not, counted by reason.

    `twice` rows have the id of an earlier one: then `index` reads none and stops.
    """

    dataset: str
    rows: int = 0
    twice: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    with_text: int = 0
    examples: list[Clip] = field(default_factory=list)
    refused_examples: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, reason, detail) of the first few."""
    twice_examples: list[str] = field(default_factory=list)


def cards() -> list[Card]:
    """One card a layout, sorted by name."""
    return [open_dataset(name).CARD for name in names()]


def recognise(root: Path) -> str:
    """Name of the layout that a folder has. DataError where none, or more than one, fits."""
    if not root.is_dir():
        raise MissingInput(f"{root} is no folder", "give the one that the download unpacks to, or a source of params")
    fits = [n for n in names() if getattr(open_dataset(n), "matches", _never)(root)]
    if len(fits) != 1:
        found = f"could be {' or '.join(fits)}" if fits else "has the layout of no known dataset"
        raise DataError(f"{root} {found}", f"name one: {', '.join(names())}")
    return fits[0]


def _never(root: Path) -> bool:
    return False


def check(
    root: Path,
    dataset: str | None = None,
    options: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
) -> Check:
    """Lists a folder, applies what `index` does before it decodes, and looks whether the files are there.

    `policy` is the source's own; null: a training pool of the card's domain, texts counted in bytes.
    """
    found = Check(dataset or recognise(root))
    policy = policy or _pool_of(found.dataset)
    keys: set[int] = set()
    with progress(f"check {root.name}", None) as advance:
        for clip in list_clips(found.dataset, root, {} if options is None else options):
            _count(found, root, clip, policy, keys)
            advance(1)
    return found


def check_source(params: Params, layout: Layout, source: str) -> Check:
    """`check` of a source that params name: its path, options, role, domain and limits."""
    from aut.datasets._rows import Policy

    s = params.sources[source]
    root = layout.corpus_root(s.dataset, s.path)
    if is_generated(s.dataset) and not root.is_dir():
        raise MissingInput(f"{root} is not there yet", f"run `aut index {source}`, which generates it")
    return check(root, s.dataset, s.options, Policy.of(source, s, params.index))


def _pool_of(dataset: str) -> Policy:
    from aut.datasets._rows import Policy

    domain = open_dataset(dataset).CARD.domain or "environment"  # which captions, but not whether there is one
    return Policy(dataset, domain, False, 0.0, float("inf"), DECODER_TOKENS, "utf8", 1)


def _count(found: Check, root: Path, clip: Clip, policy: Policy, keys: set[int]) -> None:
    if hash(clip.key) in keys:
        found.twice += 1
        if len(found.twice_examples) < EXAMPLES:
            found.twice_examples.append(clip.key)
        return
    keys.add(hash(clip.key))
    reason, detail = _refusal(root, clip, policy)
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


def _refusal(root: Path, clip: Clip, policy: Policy) -> tuple[str, str]:
    from aut.audio.decode import Unreadable
    from aut.datasets._rows import told

    try:
        told(clip, policy)
    except Unreadable as error:
        return error.reason, error.detail
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
