"""MusicBench: MusicCaps with altered audio and captions, 52,768 training and 400 test rows.

In    MusicBench_train.json, MusicBench_test_A.json (JSON lines: location, main_caption ...), and the folder that
      MusicBench.tar.gz unpacks, as huggingface.co/datasets/amaai-lab/MusicBench describes them. `location` is
      data/<youtube id>.wav, or data_aug2/<youtube id>_<n>.wav for a copy with another pitch, speed or volume.
Why   all copies of a clip share `source_id`, and `youtube_id` where the name gives it, so that the screen finds them
      within MusicCaps and AudioSet. One location may occur with several captions: later ones get a numbered key. The
      training captions were rephrased by ChatGPT; test_A has them as MusicCaps does (test_B, the same audio, adds
      sentences on chords, beats, tempo and key, and is not read).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets._checked import each
from aut.datasets._metadata import json_lines, several

CARD = Card(
    name="musicbench",
    title="MusicBench",
    licence="CC BY-SA 3.0",
    citation="J. Melechovsky et al. Mustango: Toward Controllable Text-to-Music Generation. NAACL 2024. "
    "arXiv:2311.08355",
    domain="music",
    clips=53_168,
    text_origin="model:chatgpt",
    homepage="https://huggingface.co/datasets/amaai-lab/MusicBench",
)
SPLITS = {"train": "MusicBench_train.json", "test": "MusicBench_test_A.json"}


def matches(root: Path) -> bool:
    return any((root / table).is_file() for table in SPLITS.values())


def clips(root: Path, splits: Sequence[str] = ("train",), audio: str = "datashare") -> Iterator[Clip]:
    """Rows in the order of the files; `splits` of train, test; `audio` is the folder below root that has data/."""
    seen: Counter[str] = Counter()
    for split in several("splits", splits, SPLITS):
        rows = json_lines(root / SPLITS[split], "MusicBench download", ("location", "main_caption"))
        yield from each(SPLITS[split], rows, partial(_clip, split, audio, seen))


def _clip(split: str, audio: str, seen: Counter[str], row: Mapping[str, Any]) -> Iterator[Clip]:
    location = row["location"]
    name = Path(location).stem
    video = re.match(r"([\w-]{11})(?:_|$)", name)
    key = location.rpartition(".")[0] or location
    seen[key] += 1
    yield Clip(
        key=key if seen[key] == 1 else f"{key}#{seen[key]}",
        uri=f"{audio}/{location}" if audio else location,
        text=row["main_caption"],
        text_origin="model:chatgpt" if split == "train" else "human",
        split=split,
        source_id=video[1] if video else name,
        licence=CARD.licence,
        extra={"youtube_id": video[1]} if video else {},
    )
