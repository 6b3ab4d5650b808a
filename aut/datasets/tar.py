"""Tar: WebDataset shards, members of one sample side by side, found by offset so that a clip is one read.

In    *.tar, uncompressed, below the root; `a/b.flac`, `a/b.json`, `a/b.txt` are the sample `a/b`: the key ends at
      the first dot of the base name, members of a sample follow each other (github.com/webdataset/webdataset, README)
Out   the audio member's offset and size; text from .txt or a JSON key, label from .cls or a JSON key
Why   a shard that was cut short, or has a garbled header, still gives the samples before that place; the sample that
      it fell into is refused, and so is `<shard>/end`, for what lies beyond. Links, devices, names that leave the
      shard, and audio members of a sample after its first are listed and refused.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from aut.contracts import Card, Clip
from aut.datasets import AUDIO, refused
from aut.datasets._tars import BROKEN, Damaged, members
from aut.errors import ConfigError, DataError

CARD = Card(
    name="tar",
    title="WebDataset shards",
    licence="given by options.licence or a JSON key",
    citation="the corpus' own",
    domain=None,
    homepage="https://github.com/webdataset/webdataset",
)
FIELDS = ("text", "label", "split", "source_id", "licence", "freesound_id", "youtube_id")
SIDE_BYTES = 1 << 20  # of a side member
SIDES = {".json": "", ".txt": ".text", ".cls": ".label"}
"""Members that tell of the sample, and the fact that those with nothing but text are."""


@dataclass
class Sample:
    """Members of one key, as they come."""

    key: str
    audio: tarfile.TarInfo | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Keys:
    """Which key of the JSON members is which field; `lacking` are those that params name and no sample had so far."""

    root: Path
    of: Mapping[str, str]
    lacking: set[str]
    samples: int = 0

    def found(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Fields of a sample."""
        values = {name: value for name, key in self.of.items() if (value := _dig(facts, key)) is not None}
        self.samples += 1
        if self.lacking:
            self.lacking -= {self.of[name] for name in values}
        return values

    def settle(self) -> None:
        """At the end: DataError for a key that no sample had. Not sooner: where sets are joined, some have it."""
        if self.lacking and self.samples:
            raise DataError(
                f"{self.root}: none of {self.samples} samples has the JSON key '{min(self.lacking)}'",
                "mend options.columns, or leave it out of it",
            )


def matches(root: Path) -> bool:
    return any(root.glob("*.tar"))


def clips(
    root: Path,
    columns: Mapping[str, str] | None = None,
    licence: str = "",
    split: str = "",
    text_origin: str = "human",
) -> Iterator[Clip]:
    """Samples by shard and position.

    columns       field of a row -> key of the JSON member, dots for nested ones; null: keys named as the fields, those
                  that are there
    licence, split, text_origin   where the JSON has none
    """
    if unknown := sorted(set(columns or ()) - set(FIELDS)):
        raise ConfigError(f"option columns names '{unknown[0]}'", f"the fields are {', '.join(FIELDS)}")
    shards = sorted(p for p in root.rglob("*.tar*") if p.is_file() and not p.name.startswith("."))
    if packed := [p for p in shards if p.suffix != ".tar"]:
        raise DataError(f"{packed[0]} is compressed, its members have no offsets", "unpack it to .tar first")
    if not shards:
        raise DataError(f"{root} holds no .tar file", "give the folder of the shards")
    mapping = columns if columns is not None else {name: name for name in FIELDS}
    keys = Keys(root, mapping, set((columns or {}).values()))
    given = {"licence": licence, "split": split}
    for shard in shards:
        yield from _shard(shard, shard.relative_to(root).as_posix(), keys, given, text_origin)
    keys.settle()


def _shard(path: Path, uri: str, keys: Keys, given: dict[str, str], origin: str) -> Iterator[Clip]:
    stem = uri.removesuffix(".tar")
    sample: Sample | None = None
    try:
        for member, data, fault in _members(path, uri):
            if fault:
                yield refused(f"{stem}/{member.name}", uri, *fault)
                continue
            key, kind = _key(member.name)
            if sample and sample.key != key:
                yield from _clip(sample, stem, uri, keys, given, origin)
                sample = None
            sample = sample or Sample(key)
            if kind in AUDIO and sample.audio:  # which of the two would be the clip?
                detail = f"the sample's clip is {sample.audio.name}"
                yield refused(f"{stem}/{member.name}", uri, "second_audio", detail)
            elif kind in AUDIO:
                sample.audio = member
            else:
                sample.facts |= _facts(kind, data, member)
    except Damaged as error:
        if sample:  # its caption, or the end of its audio, may lie beyond
            yield refused(f"{stem}/{sample.key}", uri, "truncated", error.detail)
        yield refused(f"{stem}/end", uri, "truncated", error.detail)
        return
    if sample:
        yield from _clip(sample, stem, uri, keys, given, origin)


def _members(path: Path, uri: str) -> Iterator[tuple[tarfile.TarInfo, bytes, tuple[str, str] | None]]:
    """(member, content of a side file, fault) in the tar's order. Raises Damaged."""
    for tar, member in members(path, uri):
        if member.isdir():
            continue
        fault = _fault(member)
        _, kind = _key(member.name)
        wanted = not fault and kind in SIDES and member.size <= SIDE_BYTES
        side = tar.extractfile(member) if wanted else None
        yield member, _read(side, member, uri) if side else b"", fault


def _read(side: IO[bytes], member: tarfile.TarInfo, uri: str) -> bytes:
    try:
        return side.read()
    except BROKEN:
        raise Damaged(uri, member.offset_data, "ends early, in the member") from None


def _fault(member: tarfile.TarInfo) -> tuple[str, str] | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "unsafe_path", "the member's name leaves the shard"
    if not member.isreg():
        return "unsafe_path", "the member is a link or a device"
    return None


def _key(name: str) -> tuple[str, str]:
    """'a/b.left.flac' -> ('a/b', '.flac')."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.split(".")[0] or path.name)), path.suffix.lower()


def _facts(kind: str, data: bytes, member: tarfile.TarInfo) -> dict[str, Any]:
    if kind not in SIDES:
        return {}
    if member.size > SIDE_BYTES:
        return {".fault": f"{member.name} has more than {SIDE_BYTES:,} bytes"}
    try:
        text = data.decode().strip()
        value = json.loads(text) if kind == ".json" else {SIDES[kind]: text}
    except (ValueError, RecursionError) as error:
        return {".fault": f"{member.name}: {str(error).splitlines()[0]}"}
    return value if isinstance(value, dict) else {".fault": f"{member.name} is no JSON object"}


def _clip(sample: Sample, stem: str, uri: str, keys: Keys, given: dict[str, str], origin: str) -> Iterator[Clip]:
    key = f"{stem}/{sample.key}"
    if ".fault" in sample.facts:
        yield refused(key, uri, "bad_metadata", sample.facts[".fault"])
    elif sample.audio is None:
        yield refused(key, uri, "missing", "the sample has no audio member")
    else:
        known = given | keys.found(sample.facts)
        text = known.get("text", sample.facts.get(".text"))
        yield Clip(
            key=key,
            uri=uri,
            text=text,
            text_origin="none" if text is None else origin,
            label=known.get("label", sample.facts.get(".label")),
            split=known["split"],
            source_id=known.get("source_id", key),
            licence=known["licence"],
            offset_b=sample.audio.offset_data,
            size_b=sample.audio.size,
            extra={k: known[k] for k in ("freesound_id", "youtube_id") if k in known},
        )


def _dig(facts: Mapping[str, Any], column: str) -> str | None:
    value: Any = facts
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None or isinstance(value, dict | list) else str(value)
