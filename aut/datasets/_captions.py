"""Captions from labels: several a label, chosen by the row's hash, that claim no more than the label says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from aut.units import Domain

TEMPLATES: dict[str, tuple[str, ...]] = {
    "sound": (
        "the sound of {a_label}",
        "{a_label} can be heard",
        "a recording of {a_label}",
        "this clip contains the sound of {a_label}",
        "an everyday sound: {label}",
        "one hears {a_label}",
    ),
    "instrument": (
        "the sound of {a_label}",
        "{a_label} is played",
        "music: {a_label}",
        "a recording of {a_label}",
        "notes from {a_label}",
        "one hears {a_label}",
    ),
    "genre": (
        "a piece of {label} music",
        "{label} music",
        "music in the genre {label}",
        "an excerpt of {label} music",
        "the genre of this music is {label}",
        "this is {label}",
    ),
    "music": (
        "music, labelled {label}",
        "a musical recording: {label}",
        "music: {label}",
        "a music clip that is labelled {label}",
    ),
    "word": ("{label}",),
    "speech": (
        "speech, labelled {label}",
        "a recording of speech: {label}",
        "someone speaks: {label}",
        "a speech clip that is labelled {label}",
    ),
}
"""Kind of label -> templates. A source says the kind of its labels (`extra['label_kind']`), else its domain decides."""

DEFAULT_KIND: dict[Domain, str] = {"speech": "speech", "environment": "sound", "music": "music"}
NO_ARTICLE = frozenset({
    "rain", "wind", "thunder", "water", "fire", "hail", "snow", "music", "noise", "speech", "silence", "applause",
    "laughter", "traffic", "surf", "sea", "teeth", "people", "children", "men", "women", "feet", "mice", "geese",
    "sheep", "cattle", "percussion", "brass", "wood",
})  # fmt: skip
"""Things without number, and irregular plurals."""
VOWEL_SOUND = ("hour", "honest", "heir")
CONSONANT_SOUND = ("uni", "use", "usu", "one", "eu", "uke", "ukulele")


def humanise(label: str) -> str:
    """'acoustic_guitar' -> 'acoustic guitar'."""
    return " ".join(label.replace("_", " ").split())


def with_article(label: str) -> str:
    """'acoustic_guitar' -> 'an acoustic guitar'; plurals, gerunds and things without number take none."""
    words = humanise(label)
    if not words:
        return ""
    first, last = words.split()[0].lower(), words.split()[-1].lower()
    plural = last.endswith("s") and not last.endswith(("ss", "us", "bass"))
    if plural or last.endswith("ing") or last in NO_ARTICLE:
        return words
    vowel = first.startswith(VOWEL_SOUND) or (first[0] in "aeiou" and not first.startswith(CONSONANT_SOUND))
    return f"{'an' if vowel else 'a'} {words}"


def describe(label: str, kind: str, key: str, count: int) -> str:
    """One of the first `count` templates of the kind, filled in."""
    return fill(TEMPLATES[kind][:count], label, key)


def fill(templates: Sequence[str], label: str, key: str) -> str:
    """The template that the key's hash picks; {label} and {a_label} (with its article) are filled in."""
    pick = pick_of(key, len(templates))
    parts = {"label": humanise(label), "a_label": with_article(label)} if label else {"label": "", "a_label": ""}
    return templates[pick].format(**parts)


def pick_of(key: str, count: int) -> int:
    """A number below `count` that the key alone decides."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "little") % count
