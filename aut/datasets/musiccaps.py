"""MusicCaps: 5,521 clips of 10 s from AudioSet, each with a caption written by a musician.

In    musiccaps-public.csv (ytid, start_s, end_s, audioset_positive_labels, aspect_list, caption, author_id,
      is_balanced_subset, is_audioset_eval), as kaggle.com/datasets/googleai/musiccaps has it. The audio is not part of
      the release: options.files says how the ten seconds, cut and saved by whoever fetched them, are called.
Why   every clip is an AudioSet clip: `youtube_id` lets the screen see that. Its own division is AudioSet's
      (is_audioset_eval: 2,858 clips, here `test`); videos that have gone are quarantined as missing
      (sources.NAME.quarantine_max_fraction says how many may be).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets._checked import each
from aut.datasets._metadata import csv_rows, placed, several

CARD = Card(
    name="musiccaps",
    title="MusicCaps",
    licence="CC BY-SA 4.0 (captions); audio under YouTube's terms",
    citation="A. Agostinelli et al. MusicLM: Generating Music From Text. arXiv:2301.11325, 2023.",
    domain="music",
    clips=5_521,
    hours=15.3,
    text_origin="human",
    homepage="https://www.kaggle.com/datasets/googleai/musiccaps",
)
TABLE = "musiccaps-public.csv"
SPLITS = {"train": "False", "test": "True"}


def matches(root: Path) -> bool:
    return (root / TABLE).is_file()


def clips(
    root: Path, splits: Sequence[str] = ("train",), files: str = "audio/[{ytid}]-[{start_s}-{end_s}].wav"
) -> Iterator[Clip]:
    """Clips in the table's order; `splits` of train, test; `files` may have the fields ytid, start_s, end_s."""
    chosen = {SPLITS[s]: s for s in several("splits", splits, SPLITS)}
    columns = ("ytid", "start_s", "end_s", "caption", "is_audioset_eval")
    rows = csv_rows(root / TABLE, "MusicCaps download", columns)
    yield from each(TABLE, rows, partial(_clip, chosen, files))


def _clip(chosen: Mapping[str, str], files: str, row: Mapping[str, str]) -> Iterator[Clip]:
    if row["is_audioset_eval"] in chosen:
        yield Clip(
            key=row["ytid"],
            uri=placed("files", files, ytid=row["ytid"], start_s=row["start_s"], end_s=row["end_s"]),
            text=row["caption"],
            text_origin="human",
            split=chosen[row["is_audioset_eval"]],
            source_id=row["ytid"],
            licence=CARD.licence,
            extra={"youtube_id": row["ytid"]},
        )
