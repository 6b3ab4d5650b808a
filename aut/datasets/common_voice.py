"""Common Voice: sentences read aloud by volunteers, one locale of a release.

In    clips/*.mp3, train.tsv, dev.tsv, test.tsv, validated.tsv, as cv-corpus-*-en.tar.gz unpacks (with or without
      cv-corpus-*/en/ above). Fields, as github.com/common-voice/cv-dataset describes them: client_id (a hash of the
      speaker), path (a name in clips/), sentence (its README says `text`, the files say `sentence`).
Why   quotation marks in the TSV are part of the sentence, no quoting: a CSV reader that takes them for quotes swallows
      lines. The three lists share no speaker, and leave out all but one recording of a sentence; `validated` takes
      every validated clip whose speaker is in neither dev.tsv nor test.tsv, about half as much again in English.
      The card's 2,500 h are all languages of 2019, as the paper's abstract has them; releases grow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets._checked import each, facts
from aut.datasets._metadata import csv_rows, several
from aut.errors import DataError

CARD = Card(
    name="common_voice",
    title="Mozilla Common Voice",
    licence="CC0-1.0",
    citation="R. Ardila et al. Common Voice: A Massively-Multilingual Speech Corpus. LREC 2020. arXiv:1912.06670",
    domain="speech",
    hours=2_500,
    text_origin="human",
    homepage="https://commonvoice.mozilla.org",
)
SPLITS = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
COLUMNS = ("client_id", "path", "sentence")
WHAT = "Common Voice release"


def matches(root: Path) -> bool:
    return (root / "clips").is_dir() and (root / "validated.tsv").is_file()


def clips(
    root: Path, locale: str = "en", splits: Sequence[str] = ("train",), validated: bool = False
) -> Iterator[Clip]:
    """Rows in the order of the lists.

    locale      folder of the language, where the release's folders are still around it
    splits      of train, validation, test
    validated   train is validated.tsv without the speakers of dev.tsv and test.tsv, instead of train.tsv
    """
    chosen, home = several("splits", splits, SPLITS), _home(root, locale)
    for split in chosen:
        table, held_out = home / SPLITS[split], dict[str, str]()
        if validated and split == "train":
            table = home / "validated.tsv"
            for name in ("dev.tsv", "test.tsv"):
                others = csv_rows(home / name, WHAT, COLUMNS, "\t", quoted=False)
                yield from facts(f"speakers of {name}", others, lambda row: (row["client_id"], ""), held_out)
        rows = csv_rows(table, WHAT, COLUMNS, "\t", quoted=False)
        folder = (home / "clips").relative_to(root).as_posix()
        yield from each(table.name, rows, partial(_clip, split, folder, held_out))


def _clip(split: str, folder: str, held_out: Collection[str], row: dict[str, str]) -> Iterator[Clip]:
    if row["client_id"] in held_out:
        return
    name = row["path"] if row["path"].endswith(".mp3") else f"{row['path']}.mp3"  # releases 1 and 2 leave it out
    yield Clip(
        key=name.removesuffix(".mp3"),
        uri=f"{folder}/{name}",
        text=row["sentence"],
        text_origin="human",
        split=split,
        source_id=row["client_id"],
        licence=CARD.licence,
    )


def _home(root: Path, locale: str) -> Path:
    homes = [p for p in (root, root / locale, *sorted(root.glob(f"cv-corpus-*/{locale}"))) if (p / "clips").is_dir()]
    if len(homes) != 1:
        found = "holds more than one release" if homes else "holds no clips/ folder"
        raise DataError(f"{root} {found} of locale {locale}", "give the folder that one release's archive unpacks to")
    return homes[0]
