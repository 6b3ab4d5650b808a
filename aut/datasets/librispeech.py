"""LibriSpeech: 1,000 h of read English at 16 kHz, with transcripts, in subsets that share no speaker.

In    <subset>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac and, beside them, <speaker>-<chapter>.trans.txt
      (a line: utterance id, a space, the transcript in capitals), as the archives of openslr.org/12 unpack, with or
      without the folder LibriSpeech/ above. Their README.TXT describes this.
Why   an utterance with a line and no file, or a file and no line, is listed and refused with that reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import refused
from aut.errors import ConfigError, DataError

CARD = Card(
    name="librispeech",
    title="LibriSpeech ASR corpus",
    licence="CC BY 4.0",
    citation="V. Panayotov, G. Chen, D. Povey, S. Khudanpur. LibriSpeech: an ASR corpus based on public domain audio "
    "books. ICASSP 2015. doi:10.1109/ICASSP.2015.7178964",
    domain="speech",
    clips=292_367,
    hours=982.1,
    text_origin="human",
    homepage="https://www.openslr.org/12",
)
SPLITS = {
    "train-clean-100": "train", "train-clean-360": "train", "train-other-500": "train",
    "dev-clean": "validation", "dev-other": "validation", "test-clean": "test", "test-other": "test",
}  # fmt: skip


def matches(root: Path) -> bool:
    return any((_home(root) / subset).is_dir() for subset in SPLITS)


def clips(root: Path, subsets: list[str] | None = None, lower: bool = False) -> Iterator[Clip]:
    """Utterances by subset, speaker, chapter. `label` is the speaker.

    subsets   which to read; null: those that are there
    lower     transcripts in lower case: the corpus has capitals, which teach a decoder to write in them
    """
    home = _home(root)
    wanted = subsets or [s for s in SPLITS if (home / s).is_dir()]
    if unknown := [s for s in wanted if s not in SPLITS]:
        raise ConfigError(f"LibriSpeech has no subset '{unknown[0]}'", f"choose among {', '.join(SPLITS)}")
    if missing := [s for s in wanted if not (home / s).is_dir()]:
        raise DataError(f"{home / missing[0]} is missing", "unpack that archive, or take it from options.subsets")
    if not wanted:
        raise DataError(f"{root} holds no subset of LibriSpeech", "give the folder that the archives unpack to")
    for subset in wanted:
        for chapter in sorted((home / subset).glob("*/*")):
            if chapter.is_dir():
                yield from _chapter(chapter, root, SPLITS[subset], lower)


def _chapter(folder: Path, root: Path, split: str, lower: bool) -> Iterator[Clip]:
    speaker = folder.parent.name
    table = folder / f"{speaker}-{folder.name}.trans.txt"
    lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if table.is_file() else []
    texts = dict(line.partition(" ")[::2] for line in lines if line)
    files = {p.stem: p.relative_to(root).as_posix() for p in folder.iterdir() if p.suffix in (".flac", ".wav")}
    for key in sorted(texts.keys() | files.keys()):
        if key not in texts:
            yield refused(key, files[key], "text_missing", f"{table.name} has no line for it")
        elif key not in files:
            yield refused(key, "", "missing", f"{table.name} names it, there is no file")
        else:
            text = texts[key].strip()
            yield Clip(
                key=key,
                uri=files[key],
                text=text.lower() if lower else text,
                text_origin="human",
                label=speaker,
                split=split,
                source_id=speaker,
                licence=CARD.licence,
            )


def _home(root: Path) -> Path:
    return root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
