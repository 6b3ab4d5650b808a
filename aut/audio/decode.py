"""Decode: a file, or the bytes of a tar's member, as 16 kHz mono; what cannot be one raises with a reason.

In    wav, flac, ogg, mp3 and what else libsndfile reads, any rate, any channels up to 64
Out   Audio: pcm_T float32 in [-1, 1], and what the header said
Why   limits are checked against the header before a sample is allocated, so that a header which claims two hours costs
      nothing. libsndfile reads a file that was cut short as a shorter one: container.py looks at it first.
Price a second look at the header and at the last page; files over 16M samples pass through the resampler in blocks.
Run   python -c 'from pathlib import Path; from aut.audio.decode import decode; print(decode(Path("a.wav")))'
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from aut.audio.container import Unreadable as Unreadable
from aut.audio.container import check_whole
from aut.audio.plain import floats
from aut.audio.rate import LOUDEST, resampled, within
from aut.files import digest_bytes
from aut.units import RATE_HZ

CHANNELS = 64
RATES_HZ = (2_000, 768_000)
MEMBER_BYTES = 1 << 30  # of a tar's member, which is read whole
ONE_GO = 1 << 24  # samples over all channels: 64 MB; longer files are mixed and resampled in blocks
MP3_SLACK = 4 * 1152  # frames: encoder delay and padding that a header counts and the decoder drops


@dataclass(frozen=True, slots=True)
class Audio:
    """pcm_T float32 mono at 16 kHz; `rate_hz`, `channels` as in the file; `duration_s` of what was decoded."""

    pcm_T: NDArray[np.float32]
    rate_hz: int
    channels: int
    duration_s: float


def decode(
    data: Path | bytes,
    start_s: float = 0.0,
    length_s: float | None = None,
    max_s: float = 3600.0,
    max_samples: int | None = None,
    formats: frozenset[str] | None = None,
) -> Audio:
    """Decodes a file or bytes, or `length_s` seconds from `start_s` on. Raises Unreadable.

    Channels are averaged, the rate converted by soxr HQ. A cut that ends after the file's end is shortened to it.
    `max_s` and `max_samples` (over all channels: what decoding costs) limit what is decoded, not the file that a cut is
    taken from. `formats`: libsndfile's names of those that are read, None all.
    """
    if isinstance(data, bytes):
        return _decode(io.BytesIO(data), len(data), start_s, length_s, max_s, max_samples, formats)
    with _open(data) as (file, size):
        return _decode(file, size, start_s, length_s, max_s, max_samples, formats)


def read_clip(root: Path, row: Mapping[str, Any], max_s: float = 30.0) -> NDArray[np.float32]:
    """pcm_T of an index row, its first `max_s` seconds, with one read for a tar's member. Raises Unreadable."""
    data = read_source(root, row["uri"], row.get("offset_b"), row.get("size_b"))
    return decode(data, row["start_s"], min(row["duration_s"], max_s), max_s).pcm_T


def read_source(root: Path, uri: str, offset_b: int | None, size_b: int | None) -> Path | bytes:
    """What `decode` takes: the path of a file, the bytes of a tar's member. Raises Unreadable."""
    if offset_b is None or size_b is None:
        return root / uri
    if size_b > MEMBER_BYTES:
        raise Unreadable("too_large", f"the member has {size_b:,} bytes, the limit is {MEMBER_BYTES:,}")
    with _open(root / uri) as (file, _):
        data = os.pread(file.fileno(), size_b, offset_b)
    if len(data) < size_b:
        raise Unreadable("truncated", f"the tar ends after {len(data):,} of the member's {size_b:,} bytes")
    return data


def content_hash(pcm_T: NDArray[np.float32]) -> str:
    """blake2b-128 of the 16 kHz mono int16 PCM, hex: equal for the same samples in another lossless file."""
    return digest_bytes(np.clip(np.rint(pcm_T * 32768.0), -32768, 32767).astype("<i2").tobytes())


class _open:  # noqa: N801 - reads as a verb
    """A regular file and its size; anything else is Unreadable, never waited for as a pipe would be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[BinaryIO, int]:
        try:
            status = self._path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("missing", "the path is no regular file")
            self._file = self._path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            raise Unreadable("missing", "no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise Unreadable("io_error", getattr(error, "strerror", None) or str(error)) from None
        return self._file, status.st_size

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _decode(
    file: BinaryIO,
    size: int,
    start_s: float,
    length_s: float | None,
    max_s: float,
    max_samples: int | None,
    formats: frozenset[str] | None,
) -> Audio:
    if size == 0:
        raise Unreadable("empty", "0 bytes")
    check_whole(file, size)
    file.seek(0)
    # A descriptor, not the path: the name's extension then plays no part in finding the format.
    handle = file if isinstance(file, io.BytesIO) else file.fileno()
    try:
        with soundfile.SoundFile(handle, closefd=False) as sound:
            if formats is not None and sound.format not in formats:
                raise Unreadable("format", f"{sound.format} is not read: send {', '.join(sorted(formats))}")
            first, frames = _span(sound, start_s, length_s, max_s)
            if max_samples is not None and (samples := frames * sound.channels) > max_samples:
                raise Unreadable("too_large", f"{samples:,} samples over all channels, the limit is {max_samples:,}")
            if first:
                sound.seek(first)
            pcm_T, read = _read(sound, frames)
            slack = MP3_SLACK if sound.format == "MP3" else 0
            if read < frames - slack or not read:
                raise Unreadable("truncated", f"the header says {frames:,} samples, {read:,} could be read")
            if not len(pcm_T):
                raise Unreadable("zero_length", f"{read:,} samples at {sound.samplerate:,} Hz are none at {RATE_HZ:,}")
            return Audio(pcm_T, sound.samplerate, sound.channels, read / sound.samplerate)
    except soundfile.LibsndfileError as error:
        reason = "not_audio" if error.code == 1 else "corrupt"  # 1: SF_ERR_UNRECOGNISED_FORMAT
        raise Unreadable(reason, error.error_string.strip().rstrip(".")) from None
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise Unreadable("corrupt", type(error).__name__) from None


def _span(sound: Any, start_s: float, length_s: float | None, max_s: float) -> tuple[int, int]:
    """(first frame, frames) to read, once the header has been found believable."""
    rate, channels, total = sound.samplerate, sound.channels, sound.frames
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise Unreadable("bad_rate", f"{rate:,} Hz, not within {RATES_HZ[0]:,} to {RATES_HZ[1]:,}")
    if not 1 <= channels <= CHANNELS:
        raise Unreadable("bad_channels", f"{channels} channels, not 1 to {CHANNELS}")
    if total <= 0:
        raise Unreadable("zero_length", "a header, and no samples")
    if start_s < 0 or (length_s is not None and length_s <= 0):
        raise Unreadable("bad_cut", f"a cut of {length_s} s from {start_s} s")
    first = round(start_s * rate)
    frames = total - first if length_s is None else min(total - first, round(length_s * rate))
    if frames <= 0:
        raise Unreadable("bad_cut", f"a cut from {start_s:g} s of {total / rate:.3f} s")
    if frames > max_s * rate + 1:
        raise Unreadable("too_long", f"{frames / rate:.1f} s, the limit is {max_s:g} s")
    return first, frames


def _read(sound: Any, frames: int) -> tuple[NDArray[np.float32], int]:
    """(16 kHz mono, frames that were there)."""
    rate = sound.samplerate
    if frames * sound.channels <= ONE_GO:
        mono_T = _mono(_floats(sound, frames))
        return resampled(mono_T, rate, RATE_HZ), len(mono_T)
    stream = soxr.ResampleStream(rate, RATE_HZ, 1, dtype="float32", quality="HQ")
    out, read, block = [], 0, max(1, ONE_GO // 4 // sound.channels)
    while read < frames:
        mono_T = _mono(_floats(sound, min(block, frames - read)))
        read += len(mono_T)
        out.append(within(stream.resample_chunk(mono_T, last=not len(mono_T) or read >= frames)))
        if not len(mono_T):
            break
    return np.concatenate(out), read


def _floats(sound: Any, frames: int) -> NDArray[np.float32]:
    """x_TC in [-1, 1]. 16-bit samples are scaled here: libsndfile makes the same floats in three times the time."""
    if sound.subtype != "PCM_16":
        x_TC: NDArray[np.float32] = sound.read(frames, dtype="float32", always_2d=True)
        return x_TC
    return floats(sound.read(frames, dtype="int16", always_2d=True))


def _mono(x_TC: NDArray[np.float32]) -> NDArray[np.float32]:
    mono_T = x_TC[:, 0]
    if x_TC.shape[1] > 1:  # column by column: numpy's mean along rows of two takes ten times as long
        with np.errstate(invalid="ignore", over="ignore"):  # told below
            mono_T = sum(x_TC.T[1:], start=mono_T) / np.float32(x_TC.shape[1])
    peak = max(float(mono_T.max(initial=0.0)), -float(mono_T.min(initial=0.0)))  # of NaN too: nothing is copied
    if not np.isfinite(peak):
        raise Unreadable("not_finite", "NaN or infinite samples")
    if peak > LOUDEST:
        raise Unreadable("out_of_range", f"float samples up to {peak:g}, should be within -1 and 1")
    return np.ascontiguousarray(mono_T)
