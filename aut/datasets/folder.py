"""Folder: one folder a class, audio files below it, whatever they are called.

In    <class>/**/*.wav (flac, ogg, mp3 ...)
Why   the layout that people have when they have none. Without better knowledge each file is a recording of its own;
      `source_pattern` names the part of a file's name that clips of one recording share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import audio_files, choice
from aut.datasets._captions import TEMPLATES
from aut.errors import ConfigError, DataError

CARD = Card(
    name="folder",
    title="One folder a class",
    licence="given by options.licence",
    citation="the corpus' own",
    domain=None,
    text_origin="template",
)


def clips(
    root: Path, licence: str = "", split: str = "", source_pattern: str | None = None, label_kind: str | None = None
) -> Iterator[Clip]:
    """Files by class and name.

    licence, split    of all clips
    source_pattern    regular expression; its first group, found in the file's name, is the recording
    label_kind        sound, instrument, genre, word ...: which caption templates fit; null: the domain's
    """
    if label_kind is not None:
        choice("label_kind", label_kind, tuple(TEMPLATES))
    pattern = _compiled(source_pattern)
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"{root} holds no folders", "give a folder that has one folder a class")
    for folder in classes:
        for path in audio_files(folder):
            uri = path.relative_to(root).as_posix()
            found = pattern.search(path.name) if pattern else None
            yield Clip(
                key=uri,
                uri=uri,
                label=folder.name,
                split=split,
                source_id=found.group(1) if found else uri,
                licence=licence,
                extra={"label_kind": label_kind} if label_kind else {},
            )


def _compiled(source_pattern: str | None) -> re.Pattern[str] | None:
    if source_pattern is None:
        return None
    try:
        pattern = re.compile(source_pattern)
    except re.error as error:
        raise ConfigError(f"option source_pattern '{source_pattern}' is no regular expression: {error}") from None
    if not pattern.groups:
        raise ConfigError(f"option source_pattern '{source_pattern}' has no group", "put ( ) around the recording")
    return pattern
