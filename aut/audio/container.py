"""Container: whether a file is as long as its own header says. libsndfile reads one that was cut as a shorter one.

In    an open file and its size
Out   nothing; Unreadable for WAV, RF64, W64, AIFF, AU and Ogg that end before their samples do
Why   chunks are walked to the one with the samples wherever it begins: pictures and notes of any size come before it
Price a seek and a short read a chunk, at most `CHUNKS`; the last 128 KB of Ogg
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal

from aut.errors import DataError

CHECKED = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "OGG", "FLAC", "MP3"})
"""libsndfile's names of formats that are looked at here, or whose decoder tells a cut itself."""
CHUNKS = 4096  # a file of empty chunks is walked no further
UNKNOWN = (0, 0xFFFFFFFF)  # in the header of a WAV or AU that was written to a pipe
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class Unreadable(DataError):
    """`reason` is one word to count by, `detail` a sentence without paths: the same on every machine."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str]]:
        return (type(self), (self.reason, self.detail))  # crosses process borders


def check_whole(file: BinaryIO, size: int) -> None:
    """Raises Unreadable ('truncated') for a file that ends before its header or last page says."""
    head = file.read(40)
    kind, form = head[:4], head[8:12]
    if kind == b"RIFF" and form == b"WAVE":
        _check_samples(_chunks(file, "little"), b"data", size, UNKNOWN)
    elif kind == b"RF64" and form == b"WAVE":
        file.seek(12 + 8 + 8)
        told = int.from_bytes(file.read(8), "little")  # of ds64, which comes first (EBU Tech 3306)
        at = [(n, start, told if length == UNKNOWN[1] else length) for n, start, length in _chunks(file, "little")]
        _check_samples(iter(at), b"data", size)
    elif kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        _check_samples(_chunks(file, "big"), b"SSND", size)
    elif kind == b"riff" and head[24:28] == b"wave":
        _check_samples(_wide_chunks(file), W64_DATA, size)
    elif kind == b".snd":
        start, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        _check_samples(iter([(b".snd", start, length)]), b".snd", size, UNKNOWN)
    elif kind == b"OggS":
        _check_last_page(file, size)


Chunk = tuple[bytes, int, int]
"""Name, where its content begins, bytes of it."""


def _chunks(file: BinaryIO, order: Literal["little", "big"]) -> Iterator[Chunk]:
    at = 12
    for _ in range(CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[4:], order)
        yield head[:4], at + 8, length
        at += 8 + length + length % 2


def _wide_chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Of a W64: names of 16 bytes, lengths of 8 that count both, chunks at multiples of 8."""
    at = 40
    for _ in range(CHUNKS):
        file.seek(at)
        head = file.read(24)
        length = int.from_bytes(head[16:], "little")
        if len(head) < 24 or not 24 <= length <= 1 << 62:
            return
        yield head[:16], at + 24, length - 24
        at += length + -length % 8


def _check_samples(chunks: Iterator[Chunk], name: bytes, size: int, unknown: tuple[int, ...] = ()) -> None:
    """A file that ends before it comes to its samples is libsndfile's to refuse."""
    for found, start, length in chunks:
        if found == name:
            if length not in unknown and start + length > size:
                told = f"the header says {length:,} bytes, {max(0, size - start):,} are there"
                raise Unreadable("truncated", told)
            return


def _check_last_page(file: BinaryIO, size: int) -> None:
    file.seek(max(0, size - (1 << 17)))  # a page has 65,307 bytes at most (RFC 3533, section 6)
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(lacing) < page[26] or len(page) < 27 + page[26] + sum(lacing):
        raise Unreadable("truncated", "the last Ogg page is not whole")
