"""Decode: what is audio becomes 16 kHz mono, what is not says why, and a header's claim is never allocated."""

import io
import struct

import numpy as np
import pytest
import soundfile

from aut.audio.container import CHECKED
from aut.audio.decode import Unreadable, content_hash, decode, read_clip

RATE = 16_000


def tone(seconds=1.0, rate=RATE, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def coded(x, rate=RATE, **kw):
    out = io.BytesIO()
    soundfile.write(out, x, rate, **{"format": "WAV", **kw})
    return out.getvalue()


def reason(data, **kw):
    with pytest.raises(Unreadable) as caught:
        decode(data, **kw)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_formats_and_rates_keep_the_tone(kind, rate):
    audio = decode(coded(tone(rate=rate), rate, format=kind))
    assert (audio.rate_hz, audio.channels) == (rate, 1)
    assert audio.pcm_T.dtype == np.float32
    assert len(audio.pcm_T) == pytest.approx(RATE, abs=0.12 * RATE)  # mp3 pads by up to two frames
    spectrum = np.abs(np.fft.rfft(audio.pcm_T[2000:10_000] * np.hanning(8000)))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2)


def test_channels_are_averaged_and_192_khz_is_read():
    x_T = tone(rate=192_000)
    audio = decode(coded(np.stack([x_T * g for g in np.linspace(0, 1, 8)], axis=1), 192_000))
    assert audio.channels == 8
    assert np.abs(audio.pcm_T).max() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_mixed_as_numpy_means_them(channels):
    x_TC = np.random.default_rng(channels).uniform(-0.9, 0.9, (8000, channels)).astype(np.float32)
    assert np.array_equal(decode(coded(x_TC, subtype="FLOAT")).pcm_T, x_TC.mean(axis=1))


def test_channels_that_are_infinite_one_way_and_the_other_are_told():
    x_TC = np.zeros((8000, 2), np.float32)
    x_TC[100] = np.inf, -np.inf
    assert reason(coded(x_TC, subtype="FLOAT")) == "not_finite"


def test_sixteen_bit_at_16_khz_is_untouched():
    x_T = np.arange(-32768, 32768, 7, dtype=np.int16)
    pcm_T = decode(coded(x_T, subtype="PCM_16")).pcm_T
    assert np.array_equal(np.round(pcm_T * 32768).astype(np.int16), x_T)
    assert content_hash(pcm_T) == content_hash(decode(coded(x_T, format="FLAC")).pcm_T)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sixteen_bit_samples_are_libsndfile_s_own_floats_and_their_mean(kind, channels):
    x_TC = np.random.default_rng(0).integers(-32768, 32768, (5000, channels), dtype=np.int16)
    data = coded(x_TC, format=kind, subtype="PCM_16")
    floats, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert np.array_equal(decode(data).pcm_T, floats.mean(axis=1, dtype=np.float32))


def test_blocks_equal_one_go(monkeypatch):
    data = coded(tone(4.0, 44_100), 44_100, subtype="FLOAT")
    whole = decode(data).pcm_T
    monkeypatch.setattr("aut.audio.decode.ONE_GO", 40_000)
    parts = decode(data).pcm_T
    assert len(parts) == len(whole)
    np.testing.assert_allclose(parts, whole, atol=1e-5)  # float32, another order of sums


def test_a_cut_is_the_same_samples():
    x_T = tone(3.0, hz=100.0) * np.linspace(0, 1, 3 * RATE, dtype=np.float32)
    data = coded(x_T, subtype="FLOAT")
    assert np.array_equal(decode(data, 1.0, 0.5).pcm_T, decode(data).pcm_T[RATE : RATE + RATE // 2])
    assert decode(data, 2.5, 9.0).duration_s == 0.5
    assert reason(data, start_s=3.0) == "bad_cut"


def test_a_row_of_a_tar_is_one_read(tmp_path):
    data = coded(tone(2.0))
    (tmp_path / "x.tar").write_bytes(b"\0" * 512 + data + b"\0" * 512)
    row = {"uri": "x.tar", "offset_b": 512, "size_b": len(data), "start_s": 0.0, "duration_s": 2.0}
    assert np.array_equal(read_clip(tmp_path, row), decode(data).pcm_T)
    assert len(read_clip(tmp_path, row, max_s=0.5)) == RATE // 2
    with pytest.raises(Unreadable, match="truncated"):
        read_clip(tmp_path, {**row, "size_b": len(data) + 4096})


def claim(data, at, kind, value):
    return data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]


BAD = {
    "empty": lambda: b"",
    "not_audio": lambda: b"this is a text in a wav\n" * 40,
    "zero_length": lambda: coded(np.zeros(0, np.float32)),
    "not_finite": lambda: coded(np.full(1000, np.nan, np.float32), subtype="FLOAT"),
    "out_of_range": lambda: coded(tone() * 30_000, subtype="FLOAT"),
    "truncated": lambda: coded(tone())[:9000],
    "bad_rate": lambda: claim(coded(tone()), 24, "<I", 100_000_000),
    "too_long": lambda: coded(tone(30.0)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_its_reason(name):
    assert reason(BAD[name](), max_s=10.0) == name


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])  # ours carry the count of MP3 frames in a Xing header
def test_a_compressed_file_that_was_cut_short(kind):
    noise = np.random.default_rng([0]).normal(0, 0.1, 5 * RATE).astype(np.float32)
    data = coded(noise, format=kind)
    cut = data[: len(data) * 6 // 10]
    assert reason(cut) in ("truncated", "corrupt")


def test_a_two_hour_claim_allocates_nothing(tmp_path):
    import tracemalloc

    path = tmp_path / "long.wav"
    path.write_bytes(coded(np.zeros(10, np.int16)))
    size = 2 * 3600 * RATE * 2
    with path.open("r+b") as f:  # a sparse file: the samples are there, and cost no disk
        f.seek(40)
        f.write(struct.pack("<I", size))
        f.truncate(44 + size)
    tracemalloc.start()
    assert reason(path, max_s=3600.0) == "too_long"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_missing_folder_and_wrong_extension(tmp_path):
    assert reason(tmp_path / "gone.wav") == "missing"
    assert reason(tmp_path) == "missing"
    (tmp_path / "x.raw").write_bytes(coded(tone(), format="FLAC"))
    assert decode(tmp_path / "x.raw").duration_s == 1.0


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"])
@pytest.mark.parametrize("left", [0.5, 0.9, 0.99])
def test_a_cut_file_is_told_wherever_its_samples_begin(kind, left):
    """Behind a picture of 10 KB, too."""
    held = io.BytesIO()
    soundfile.write(held, tone(), 16_000, format=kind, subtype="PCM_16")
    whole = held.getvalue()
    assert len(decode(whole).pcm_T) == len(tone())
    with pytest.raises(Unreadable, match="truncated"):
        decode(whole[: int(left * len(whole))])
    name, order = {"WAV": (b"data", "little"), "AIFF": (b"SSND", "big")}.get(kind, (b"", "little"))
    if name:
        at = whole.index(name)
        longer = whole[:at] + b"note" + (10_000).to_bytes(4, order) + bytes(10_000) + whole[at:]
        assert len(decode(longer).pcm_T) == len(tone())
        with pytest.raises(Unreadable, match="truncated"):
            decode(longer[:-500])


def test_only_the_formats_asked_for_are_read():
    held = io.BytesIO()
    soundfile.write(held, tone(), 16_000, format="VOC", subtype="PCM_16")
    assert len(decode(held.getvalue()).pcm_T) == len(tone())
    with pytest.raises(Unreadable, match="VOC is not read"):
        decode(held.getvalue(), formats=CHECKED)
