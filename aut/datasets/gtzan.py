"""GTZAN: 1,000 excerpts of 30 s at 22,050 Hz, 10 genres, 100 each.

In    genres/<genre>/<genre>.00000.wav (or .au, as first published), or genres_original/ as Kaggle's copy has it
Why   jazz.00054 of Kaggle's copy is cut short, which many loaders pass over in silence; here it is listed, and `index`
      quarantines it where it can't be read. Repetitions and faults are listed by B. Sturm (arXiv 1306.1461). `split` is
      the fault-filtered division of C. Kereliuk, B. Sturm, J. Larsen (arXiv 1507.04761): 443, 197 and 290 excerpts, no
      artist in two parts. The 70 it leaves out are `excluded("sturm")` and have no split. Excerpt numbers as in
      github.com/jordipons/sklearn-audio-transfer-learning, data/index/GTZAN, commit 066fc6a. Price: within a part each
      excerpt counts as a recording of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import audio_files
from aut.errors import ConfigError, DataError

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
FILTERED = {
    "train": {
        "blues": "29-49 73-97",
        "classical": "30-33 43-48 50-67 80-99",
        "country": "19-26 28-29 65-99",
        "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89",
        "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80",
        "jazz": "0-1 11-24 41 47-72",
        "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99",
        "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99",
        "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69",
        "rock": "0-9 16-26 57-70 91-99",
    },
    "validation": {
        "blues": "0-11 50-60",
        "classical": "0-10 68-76",
        "country": "0-7 9-18 27 41-42 45 49",
        "disco": "0 2-4 6-14 46 48 52 67-68 72 75 90 95",
        "hiphop": "81-98",
        "jazz": "2-10 25-32",
        "metal": "0-1 6-11 16-20 36-37 68 76-77 81-82",
        "pop": "10 53 55 58-62 81 83-86",
        "reggae": "61-62 70 72 74 76-78 85 92-99",
        "rock": "38 49-56 71-85",
    },
    "test": {
        "blues": "12-28 61-72 98-99",
        "classical": "11-29 34-41 49 77-79",
        "country": "30-40 43-44 46-48 50-51 53-64",
        "disco": "1 21 58 62-66 69 76-88 91-94 96-97 99",
        "hiphop": "0 26-27 30 40 43-45 51-54 62-75 99",
        "jazz": "73-99",
        "metal": "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
        "pop": "0-1 13-14 43 63-66 69-79 82 88-96",
        "reggae": "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
        "rock": "10-15 27-37 39-48 86-90",
    },
}
"""Excerpt numbers of each part, ranges with both ends."""
FOLDERS = ("genres", "genres_original", "Data/genres_original", ".")


def excluded(name: str) -> frozenset[str]:
    """Keys of the excerpts that a list leaves out. 'sturm': repetitions, distortions, mislabelled excerpts."""
    if name != "sturm":
        raise ConfigError(f"gtzan has no exclusion list '{name}'", "choose sturm, or null")
    kept = splits()
    return frozenset(key for genre in GENRES for n in range(100) if (key := f"{genre}.{n:05d}") not in kept)


@cache
def splits() -> dict[str, str]:
    """Key -> part of the fault-filtered division; excerpts that it leaves out are absent."""
    return {
        f"{genre}.{n:05d}": part
        for part, genres in FILTERED.items()
        for genre, ranges in genres.items()
        for first, _, last in (r.partition("-") for r in ranges.split())
        for n in range(int(first), int(last or first) + 1)
    }


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
                split=splits().get(path.stem, ""),
                source_id=path.stem,
                licence=CARD.licence,
                extra={"label_kind": "genre"},
            )
