"""NSynth: 305,979 notes of 4 s at 16 kHz, from 1,006 instruments of 11 families.

In    nsynth-{train,valid,test}/examples.json (an object: note_str -> pitch, velocity, instrument_str,
      instrument_family_str, instrument_source_str, qualities_str ...) and audio/<note_str>.wav, as the .jsonwav
      archives of magenta.tensorflow.org/datasets/nsynth unpack.
Why   the set has labels, no captions: a caption is put together from instrument, pitch and qualities, so that 289,205
      notes do not share a handful of texts. No instrument of train is in valid or test; these two may share one. The
      training JSON has some 200 MB and is read one note at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets._captions import fill, humanise
from aut.datasets._checked import each
from aut.datasets._metadata import in_words, json_members, several

CARD = Card(
    name="nsynth",
    title="NSynth: a dataset of musical notes",
    licence="CC BY 4.0",
    citation="J. Engel et al. Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders. ICML 2017. "
    "arXiv:1704.01279",
    domain="music",
    clips=305_979,
    hours=339.98,
    classes=11,
    text_origin="template",
    homepage="https://magenta.tensorflow.org/datasets/nsynth",
)
SPLITS = {"train": "nsynth-train", "validation": "nsynth-valid", "test": "nsynth-test"}
NOTE = ("instrument_str", "instrument_family_str", "instrument_source_str", "pitch", "qualities_str")
TEMPLATES = ("a note from {a_label}", "the sound of {a_label}, one note", "a single note: {label}", "{label}, one note")
PITCHES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")


def matches(root: Path) -> bool:
    return any((root / f / "examples.json").is_file() for f in SPLITS.values())


def clips(root: Path, splits: Sequence[str] = ("train",)) -> Iterator[Clip]:
    """Notes in the order of examples.json; `splits` of train, validation, test. `label` is the instrument's family."""
    for split in several("splits", splits, SPLITS):
        table = f"{SPLITS[split]}/examples.json"
        yield from each(table, json_members(root / table, "NSynth archive", NOTE), partial(_clip, split))


def _clip(split: str, row: tuple[str, dict[str, Any]]) -> Iterator[Clip]:
    folder, (name, note) = SPLITS[split], row
    yield Clip(
        key=f"{folder}/{name}",
        uri=f"{folder}/audio/{name}.wav",
        text=_caption(name, note),
        text_origin="template",
        label=note["instrument_family_str"],
        split=split,
        source_id=note["instrument_str"],
        licence=CARD.licence,
        extra={"label_kind": "instrument"},
    )


def _caption(name: str, note: dict[str, Any]) -> str:
    """'a note from an acoustic guitar, C 4, dark and percussive'; MIDI pitch 60 is C 4."""
    family, origin = note["instrument_family_str"], note["instrument_source_str"]
    instrument = family if family == "synth_lead" else f"{origin} {family}"  # every synth lead is synthetic
    octave, step = divmod(int(note["pitch"]), 12)
    facts = [fill(TEMPLATES, humanise(instrument), name), f"{PITCHES[step]} {octave - 1}"]
    return ", ".join(facts + ([in_words(note["qualities_str"])] if note["qualities_str"] else []))
