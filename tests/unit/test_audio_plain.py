"""Samples taken as they lie in a file: the decoder's own, to the last bit, and never where the decoder would refuse."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.audio.decode import Unreadable, decode
from aut.audio.plain import floats, plain

FORMAT = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    told = len(content) if length is None else length
    return name + struct.pack("<I", told) + content + b"\0" * (len(content) % 2)


def wav(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def pcm(samples: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(-32_768, 32_768, samples, np.int16).tobytes()


def written(rate: int = 16_000, channels: int = 1, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    x_TC = np.random.default_rng(0).uniform(-1.0, 1.0, (800, channels))
    soundfile.write(out, x_TC, rate, format=form, subtype=subtype)
    return out.getvalue()


def test_what_libsndfile_writes_is_taken_as_it_lies():
    data = written()
    found = plain(data)
    assert found is not None
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(floats(found), decode(data).pcm_T)


@pytest.mark.parametrize(
    "data",
    [
        written(rate=44_100), written(channels=2), written(subtype="FLOAT"), written(subtype="PCM_24"),
        written(form="FLAC"), written(form="WAVEX"), written(form="RF64"), b"", b"RIFF", written()[:-2],
        written()[:40], written() + b"\0\0",
        wav(chunk(b"fmt ", FORMAT), chunk(b"LIST", b"INFO"), chunk(b"data", pcm(10))),
        wav(chunk(b"data", pcm(10)), chunk(b"fmt ", FORMAT)),
        wav(chunk(b"fmt ", FORMAT), chunk(b"fmt ", FORMAT), chunk(b"data", pcm(10))),
        wav(chunk(b"fmt ", FORMAT), chunk(b"data", b"")), wav(chunk(b"fmt ", FORMAT), chunk(b"data", b"abc")),
        wav(chunk(b"fmt ", FORMAT), chunk(b"data", pcm(10), length=0xFFFFFFFF)),
        wav(chunk(b"fmt ", FORMAT), chunk(b"data", pcm(10), length=0)),
        wav(chunk(b"fmt ", FORMAT), chunk(b"data", pcm(10)), chunk(b"LIST", b"INFO")),
    ],
)  # fmt: skip
def test_all_else_is_left_to_the_decoder(data):
    assert plain(data) is None


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_file_is_taken_that_the_decoder_would_read_otherwise(data):
    """Headers with bytes of their own: either left to the decoder, or exactly what it reads."""
    name = st.sampled_from([b"fmt ", b"data", b"LIST", b"fact", b"PEAK", b"cue ", b"ID3 "])
    content = st.sampled_from([FORMAT, FORMAT + b"\0\0", pcm(8), pcm(1), b"", b"INFO"]) | st.binary(max_size=40)
    length = st.none() | st.integers(0, 60) | st.sampled_from([0xFFFFFFFF, 1 << 31])
    made = st.lists(st.builds(chunk, name, content, length), max_size=4)
    body = data.draw(st.just([chunk(b"fmt ", FORMAT)]) | made) + data.draw(made) + [chunk(b"data", pcm(30))]
    file = bytearray(wav(*body))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3)):
        if at < len(file):
            file[at] = value
    found = plain(bytes(file))
    if found is not None:
        np.testing.assert_array_equal(floats(found), decode(bytes(file)).pcm_T)


def test_the_decoder_refuses_what_is_left_to_it():
    with pytest.raises(Unreadable, match="truncated"):
        decode(written()[:-2])
