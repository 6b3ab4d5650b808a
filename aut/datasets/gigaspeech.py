"""GigaSpeech: 10,000 h of transcribed English from audiobooks, podcasts and YouTube, as segments of long files.

In    GigaSpeech.json and audio/{audiobook,podcast,youtube}/P0001/POD0000000001.opus, as the set's own download script
      (github.com/SpeechColab/GigaSpeech) leaves them. The JSON has one array `audios` (aid, path, source, url ...),
      each with `segments` (sid, begin_time, end_time, text_tn, subsets): toolkits/kaldi/extract_meta.py reads the same.
Why   subsets are tags such as "{XL}", nested: {XL} holds {L} and so on; "{DEV}" and "{TEST}" are apart.
      text_tn is in capitals, its punctuation written as tags (<COMMA> <PERIOD> <QUESTIONMARK> <EXCLAMATIONPOINT>: the
      repository's wiki has the list), which become the marks they stand for. Segments tagged <SIL>, <MUSIC>, <NOISE> or
      <OTHER> hold no speech; the set's own recipe deletes them, here they are refused. The JSON has about 1 GB and is
      read one recording at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets import choice, refused
from aut.datasets._checked import each, numbered
from aut.datasets._columns import Columns
from aut.datasets._metadata import json_array, several

CARD = Card(
    name="gigaspeech",
    title="GigaSpeech",
    licence="Apache-2.0 (metadata); audio for non-commercial research and education",
    citation="G. Chen et al. GigaSpeech: An Evolving, Multi-domain ASR Corpus with 10,000 Hours of Transcribed Audio. "
    "Interspeech 2021. arXiv:2106.06909",
    domain="speech",
    hours=10_000,
    text_origin="human",
    homepage="https://github.com/SpeechColab/GigaSpeech",
)
SUBSETS = ("xs", "s", "m", "l", "xl")
SPLITS = {"train": "", "validation": "{DEV}", "test": "{TEST}"}
MARKS = {" <COMMA>": ",", " <PERIOD>": ".", " <QUESTIONMARK>": "?", " <EXCLAMATIONPOINT>": "!"}
NO_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")
SEGMENT = ("sid", "begin_time", "end_time", "text_tn", "subsets")


def matches(root: Path) -> bool:
    return (root / "GigaSpeech.json").is_file()


def clips(root: Path, subset: str = "xl", splits: Sequence[str] = ("train",), lower: bool = False) -> Iterator[Clip]:
    """Segments in the order of GigaSpeech.json.

    subset   xs, s, m, l or xl: which training segments
    splits   of train, validation, test
    lower    transcripts in lower case: the corpus has capitals, which teach a decoder to write in them
    """
    choice("subset", subset, SUBSETS)
    tags = {SPLITS[s] or f"{{{subset.upper()}}}": s for s in several("splits", splits, SPLITS)}
    table = root / "GigaSpeech.json"
    audios = json_array(table, "GigaSpeech download", "audios", ("aid", "path", "source", "segments"))
    columns = Columns(table, SEGMENT)
    yield from each(table.name, numbered(audios, 1), partial(_audio, columns, table.name, tags, lower))
    columns.settle()


def _audio(
    columns: Columns, table: str, tags: Mapping[str, str], lower: bool, row: tuple[int, dict[str, Any]]
) -> Iterator[Clip]:
    number, audio = row
    segments = (columns.of(s, f"a segment of {audio['aid']}") for s in audio["segments"])
    yield from each(table, segments, partial(_segment, tags, lower, audio), f"{number}.")


def _segment(tags: Mapping[str, str], lower: bool, audio: Mapping[str, Any], segment: dict[str, Any]) -> Iterator[Clip]:
    split = next((s for tag, s in tags.items() if tag in segment["subsets"]), None)
    if split is None:
        return
    key, text = segment["sid"], segment["text_tn"]
    if any(tag in text for tag in NO_SPEECH):
        yield refused(key, audio["path"], "no_speech", f"the transcript is tagged {text}")
        return
    for tag, mark in MARKS.items():
        text = text.replace(tag, mark)
    video = re.search(r"(?:[?&]v=|youtu\.be/)([\w-]{11})", audio.get("url") or "")
    yield Clip(
        key=key,
        uri=audio["path"],
        text=text.strip().lower() if lower else text.strip(),
        text_origin="human",
        split=split,
        source_id=audio["aid"],
        licence=CARD.licence,
        start_s=float(segment["begin_time"]),
        length_s=float(segment["end_time"]) - float(segment["begin_time"]),
        extra={"youtube_id": video[1]} if video else {},
    )
