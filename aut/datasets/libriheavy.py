"""Libriheavy: 50,000 h of LibriVox with punctuation and case, as cuts of the Libri-Light files.

In    libriheavy_cuts_{small,medium,large,dev,test_*}.jsonl.gz (github.com/k2-fsa/libriheavy; at the root or below
      cases_and_punc/lhotse) and the Libri-Light recordings. A line is a lhotse cut: id, start, duration,
      recording.sources[0].source, supervisions[0] with speaker and custom.texts: first the book's own words, then the
      upper-case output of the recogniser that aligned them. Manifests extracted for ASR carry `text` instead.
Why   the manifests hard-code the audio's folder as download/librilight: options.audio says where it lies. The files
      small, medium and large hold different cuts; the paper's "large subset" is all three. The same LibriVox chapters
      occur in LibriSpeech and MLS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets import refused
from aut.datasets._checked import each
from aut.datasets._metadata import json_lines, several

CARD = Card(
    name="libriheavy",
    title="Libriheavy",
    licence="public domain (LibriVox audio); Apache-2.0 (manifests)",
    citation="W. Kang et al. Libriheavy: a 50,000 hours ASR corpus with punctuation casing and context. ICASSP 2024. "
    "arXiv:2309.08105",
    domain="speech",
    hours=50_000,
    text_origin="human",
    homepage="https://github.com/k2-fsa/libriheavy",
)
SUBSETS = {
    "small": "train", "medium": "train", "large": "train", "dev": "validation",
    "test_clean": "test", "test_other": "test", "test_clean_large": "test", "test_other_large": "test",
}  # fmt: skip
FOLDERS = (".", "cases_and_punc/lhotse")
HARD_CODED = "download/librilight/"


def matches(root: Path) -> bool:
    return any(any((root / folder).glob("libriheavy_cuts_*.jsonl.gz")) for folder in FOLDERS)


def clips(
    root: Path, subsets: Sequence[str] = ("small", "medium", "large"), audio: str = "download/librilight"
) -> Iterator[Clip]:
    """Cuts by subset, in the order of its manifest.

    subsets   of small, medium, large, dev, test_clean, test_other, test_clean_large, test_other_large
    audio     folder below root that holds Libri-Light's small/, medium/ and large/
    """
    for subset in several("subsets", subsets, SUBSETS):
        name = f"libriheavy_cuts_{subset}.jsonl.gz"
        table = next((p for f in FOLDERS if (p := root / f / name).is_file()), root / name)
        cuts = json_lines(table, "Libriheavy download", ("id", "start", "duration", "recording", "supervisions"))
        yield from each(table.name, cuts, partial(_cut, SUBSETS[subset], audio))


def _cut(split: str, audio: str, cut: dict[str, Any]) -> Iterator[Clip]:
    source = cut["recording"]["sources"][0]["source"]
    if not source.startswith(HARD_CODED):
        yield refused(cut["id"], source, "unsafe_path", f"the recording lies outside {HARD_CODED}")
        return
    spoken = cut["supervisions"][0]
    texts = (spoken.get("custom") or {}).get("texts")
    yield Clip(
        key=cut["id"],
        uri=f"{audio}/{source.removeprefix(HARD_CODED)}",
        text=texts[0] if texts else spoken["text"],
        text_origin="human",
        split=split,
        source_id=spoken["speaker"],
        licence=CARD.licence,
        start_s=float(cut["start"]),
        length_s=float(cut["duration"]),
    )
