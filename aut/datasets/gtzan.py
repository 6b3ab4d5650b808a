"""GTZAN: 1,000 excerpts of 30 s at 22,050 Hz, 10 genres, 100 each.

In    genres/<genre>/<genre>.00000.wav (or .au, as first published), or genres_original/ as Kaggle's copy has it
Why   jazz.00054 of Kaggle's copy is cut short, which many loaders pass over in silence; here it is listed, and `index`
      quarantines it where it can't be read. Repetitions and faults are listed by Sturm (arXiv 1306.1461); without his
      artist annotations each excerpt is taken as a recording of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import audio_files
from aut.errors import DataError

CARD = Card(
    name="gtzan",
    title="GTZAN Genre Collection",
    licence="not stated; research use",
    citation="G. Tzanetakis and P. Cook. Musical genre classification of audio signals. "
    "IEEE Transactions on Speech and Audio Processing 10(5), 2002. doi:10.1109/TSA.2002.800560",
    domain="music",
    clips=1_000,
    hours=8.33,
    classes=10,
    homepage="https://huggingface.co/datasets/marsyas/gtzan",
)
GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
FOLDERS = ("genres", "genres_original", "Data/genres_original", ".")


def matches(root: Path) -> bool:
    return any((root / folder / genre).is_dir() for folder in FOLDERS for genre in ("disco", "reggae"))


def clips(root: Path) -> Iterator[Clip]:
    """Rows by genre and number. DataError where no folder holds the genres."""
    home = next((root / f for f in FOLDERS if any((root / f / g).is_dir() for g in GENRES)), None)
    if home is None:
        raise DataError(f"{root} has no genres/<genre> folders", "give the folder that the GTZAN download unpacks to")
    for genre in GENRES:
        if not (home / genre).is_dir():
            raise DataError(f"{home / genre} is missing: GTZAN has {len(GENRES)} genres", "unpack the archive again")
        for path in audio_files(home / genre):
            yield Clip(
                key=path.stem,
                uri=path.relative_to(root).as_posix(),
                label=genre,
                source_id=path.stem,
                licence=CARD.licence,
                extra={"label_kind": "genre"},
            )
