"""Speech Commands v0.01 and v0.02: 1-s words at 16 kHz from 1,881 and 2,618 speakers, official lists.

In    <word>/<speaker>_nohash_<n>.wav, validation_list.txt, testing_list.txt, _background_noise_/*.wav, and, where
      `test_set` names it, the folder of speech_commands_test_set_v0.0*.tar.gz (12 classes, silence included)
Why   the lists divide by speaker hash (P. Warden, arXiv:1804.03209, section 7); what neither list names is training.
      SUPERB's keyword task (S. Yang et al., arXiv:2105.01051) knows 10 words, `_unknown_` and `_silence_`: its training
      silence is cut from the noise files, its test part is the separate test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from aut.contracts import Card, Clip
from aut.datasets import audio_files, needs, refused
from aut.errors import ConfigError

CARD = Card(
    name="speech_commands",
    title="Speech Commands",
    licence="CC BY 4.0",
    citation="P. Warden. Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition. arXiv:1804.03209, 2018.",
    domain="speech",
    clips=105_829,
    hours=29.4,
    classes=35,
    text_origin="human",
    homepage="https://www.tensorflow.org/datasets/catalog/speech_commands",
)
NOISE, SILENCE, UNKNOWN = "_background_noise_", "_silence_", "_unknown_"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHERS = (
    "backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy", "house", "learn",
    "marvin", "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "visual", "wow", "zero",
)  # fmt: skip


def labels(scheme: str) -> dict[str, str]:
    """Label of this set -> class of the scheme. 'superb12': 10 words, `_unknown_`, `_silence_`."""
    if scheme != "superb12":
        raise ConfigError(f"speech_commands has no label mapping '{scheme}'", "choose superb12, or null")
    return {word: word for word in (*KEYWORDS, UNKNOWN, SILENCE)} | dict.fromkeys(OTHERS, UNKNOWN)


def matches(root: Path) -> bool:
    return (root / "testing_list.txt").is_file() and (root / "validation_list.txt").is_file()


def clips(root: Path, silence: bool = False, test_set: str | None = None) -> Iterator[Clip]:
    """Words in the order of folders and names, then silence.

    silence    cut the noise files into whole seconds, as training clips labelled `_silence_`
    test_set   folder below root that holds the official test set; the test list's clips are then left out
    """
    listed = {"validation": _lines(root / "validation_list.txt"), "test": _lines(root / "testing_list.txt")}
    skip = {NOISE, test_set.split("/")[0] if test_set else NOISE}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder.name not in skip:
            yield from _words(folder, listed, bool(test_set))
    if silence:
        yield from _silence(needs(root / NOISE, "Speech Commands folder with noise files"), root)
    if test_set:
        yield from _test_set(needs(root / test_set, "Speech Commands test set"), root)


def _words(folder: Path, listed: dict[str, frozenset[str]], test_apart: bool) -> Iterator[Clip]:
    for path in audio_files(folder):
        name = f"{folder.name}/{path.name}"
        split = next((s for s, names in listed.items() if name in names), "train")
        if not (test_apart and split == "test"):
            yield _word(f"{folder.name}/{path.stem}", name, folder.name, split, path)


def _word(key: str, uri: str, label: str, split: str, path: Path) -> Clip:
    known = None if label.startswith("_") else label
    return Clip(
        key=key,
        uri=uri,
        text=known,
        text_origin="human" if known else "none",
        label=label,
        split=split,
        source_id=re.sub(r"_nohash_.*$", "", path.stem),
        licence=CARD.licence,
        extra={"label_kind": "word"},
    )


def _silence(folder: Path, root: Path) -> Iterator[Clip]:
    import soundfile

    for path in audio_files(folder):
        uri = path.relative_to(root).as_posix()
        try:
            seconds = int(soundfile.info(path).duration)
        except soundfile.SoundFileError as error:
            yield refused(f"{SILENCE}/{path.stem}", uri, "corrupt", type(error).__name__)
            continue
        for second in range(seconds):
            yield Clip(
                key=f"{SILENCE}/{path.stem}-{second:03d}",
                uri=uri,
                label=SILENCE,
                split="train",
                source_id=path.stem,
                licence=CARD.licence,
                start_s=float(second),
                length_s=1.0,
            )


def _test_set(folder: Path, root: Path) -> Iterator[Clip]:
    for path in audio_files(folder):
        uri = path.relative_to(root).as_posix()
        yield _word(uri.removesuffix(path.suffix), uri, path.parent.name, "test", path)


def _lines(path: Path) -> frozenset[str]:
    return frozenset(needs(path, "Speech Commands folder").read_text().split())
