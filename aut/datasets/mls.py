"""Multilingual LibriSpeech: read audiobooks cut into utterances of 10 to 20 s; the English part has 44,660 h.

In    {train,dev,test}/transcripts.txt (utterance id, a tab, the transcript) and
      {train,dev,test}/audio/<speaker>/<book>/<speaker>_<book>_<utterance>.flac, as mls_english.tar.gz of
      openslr.org/94 unpacks; .opus in mls_english_opus.tar.gz. segments.txt beside them names the LibriVox file and
      the times that each utterance was cut at; the cuts are files of their own, so it is not needed here.
Why   transcripts are in lower case and have no punctuation. LibriVox is also the source of LibriSpeech and Libriheavy:
      utterances of one chapter occur in all three, cut elsewhere. Splits share no speaker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import audio_files, needs
from aut.datasets._checked import each
from aut.datasets._metadata import several

CARD = Card(
    name="mls",
    title="Multilingual LibriSpeech (MLS)",
    licence="CC BY 4.0",
    citation="V. Pratap, Q. Xu, A. Sriram, G. Synnaeve, R. Collobert. MLS: A Large-Scale Multilingual Dataset for "
    "Speech Research. Interspeech 2020. arXiv:2012.03411",
    domain="speech",
    clips=10_815_613,
    hours=44_691,
    text_origin="human",
    homepage="https://www.openslr.org/94",
)
SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def matches(root: Path) -> bool:
    return any((root / f / "transcripts.txt").is_file() for f in SPLITS.values())


def clips(root: Path, splits: Sequence[str] = ("train",)) -> Iterator[Clip]:
    """Utterances in the order of transcripts.txt; `splits` of train, validation, test."""
    for split in several("splits", splits, SPLITS):
        folder = root / SPLITS[split]
        table = needs(folder / "transcripts.txt", "MLS archive")
        suffix = next((p.suffix for p in audio_files(needs(folder / "audio", "MLS archive"))), ".flac")
        with table.open(encoding="utf-8", errors="surrogateescape") as lines:
            yield from each(f"{SPLITS[split]}/{table.name}", lines, partial(_clip, split, suffix))


def _clip(split: str, suffix: str, line: str) -> Iterator[Clip]:
    key, tab, text = line.rstrip("\n").partition("\t")
    speaker, *rest = key.split("_")
    if not tab or len(rest) != 2:
        raise ValueError("no utterance id, tab and transcript")
    yield Clip(
        key=key,
        uri=f"{SPLITS[split]}/audio/{speaker}/{rest[0]}/{key}{suffix}",
        text=text,
        text_origin="human",
        split=split,
        source_id=speaker,
        licence=CARD.licence,
    )
