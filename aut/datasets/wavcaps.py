"""WavCaps: 403,050 sounds with captions that ChatGPT wrote from the descriptions on four web sources.

In    json_files/<source>/*_final.json of github.com/XinhaoMei/WavCaps (an object: num_captions_per_audio, data: a list
      of id, caption, duration ...) and the audio, unpacked from huggingface.co/datasets/cvssp/WavCaps: <id>.flac
Why   ids are Freesound's in FreeSound, YouTube's with a Y in front (and .wav behind) in AudioSet_SL: kept for the
      screen. json_files/blacklist/ holds the set's own lists of overlaps, e.g. with ESC-50 and UrbanSound8K: clips that
      options.blacklist names are left out. Many Freesound recordings last minutes; what is over index.max_s is
      quarantined. fsd_final_2s.json, a subset, is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets import columns_of, needs
from aut.datasets._checked import each
from aut.datasets._metadata import json_array, placed, several
from aut.errors import DataError
from aut.files import read_json

CARD = Card(
    name="wavcaps",
    title="WavCaps",
    licence="academic use only; each sound as its source says",
    citation="X. Mei et al. WavCaps: A ChatGPT-Assisted Weakly-Labelled Audio Captioning Dataset for Audio-Language "
    "Multimodal Research. IEEE/ACM TASLP 32, 2024. arXiv:2303.17395",
    domain="environment",
    clips=403_050,
    hours=7_568,
    text_origin="model:chatgpt",
    homepage="https://github.com/XinhaoMei/WavCaps",
)
SOURCES = {
    "FreeSound": ("FreeSound/fsd_final.json", "academic use; Creative Commons, see freesound.org"),
    "BBC_Sound_Effects": ("BBC_Sound_Effects/bbc_final.json", "academic use; RemArc"),
    "SoundBible": ("SoundBible/sb_final.json", "academic use; see soundbible.com"),
    "AudioSet_SL": ("AudioSet_SL/as_final.json", "academic use; audio under YouTube's terms"),
}


def matches(root: Path) -> bool:
    return any((root / "json_files" / table).is_file() for table, _ in SOURCES.values())


def clips(
    root: Path,
    sources: Sequence[str] = tuple(SOURCES),
    files: str = "{source}/{id}.flac",
    blacklist: str | None = None,
) -> Iterator[Clip]:
    """Sounds by source, in the order of its list.

    sources     of FreeSound, BBC_Sound_Effects, SoundBible, AudioSet_SL
    files       path below root; its fields are source, id
    blacklist   file below root, {FreeSound: [ids], AudioSet: [ids]}: clips to leave out
    """
    dropped = _dropped(needs(root / blacklist, "WavCaps blacklist")) if blacklist else frozenset()
    for source in several("sources", sources, SOURCES):
        name, _ = SOURCES[source]
        items = json_array(root / "json_files" / name, "WavCaps download", "data", ("id", "caption"))
        yield from each(name, items, partial(_clip, source, files, dropped))


def _clip(source: str, files: str, dropped: frozenset[tuple[str, str]], item: dict[str, Any]) -> Iterator[Clip]:
    if (source, item["id"]) in dropped:
        return
    name = item["id"].removesuffix(".wav")
    known = {"FreeSound": {"freesound_id": name}, "AudioSet_SL": {"youtube_id": name.removeprefix("Y")}}
    caption = item["caption"]
    yield Clip(
        key=f"{source}/{name}",
        uri=placed("files", files, source=source, id=name),
        text=caption[0] if isinstance(caption, list) else caption,
        text_origin="model:chatgpt",
        source_id=f"{source}/{name}",
        licence=SOURCES[source][1],
        extra=known.get(source, {}),
    )


def _dropped(path: Path) -> frozenset[tuple[str, str]]:
    lists = read_json(path)
    named = (("FreeSound", "FreeSound"), ("AudioSet_SL", "AudioSet"))
    try:
        columns_of(path, list(lists), ("FreeSound", "AudioSet"))
        return frozenset((source, i) for source, key in named for i in lists[key])
    except TypeError:
        raise DataError(f"{path} holds no lists of ids", "download the file again") from None
