"""Log-mel against transformers' extractor, and a clip alone against the same clip in a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aut.audio.mel import MAX_SAMPLES, log_mel, mel_filters

ATOL = 1e-4  # float32 FFTs of different libraries, after a logarithm


def noise(n, seed=0):
    rng = np.random.default_rng([seed, n])
    return (rng.standard_normal(n) * np.linspace(0.001, 0.3, n)).astype(np.float32)


def batch(clips):
    x_BT = torch.zeros(len(clips), max(len(c) for c in clips))
    for row, clip in zip(x_BT, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return x_BT, torch.tensor([len(c) for c in clips])


@pytest.fixture(scope="module", params=[80, 128])
def extractor(request):
    from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=request.param)


@pytest.mark.parametrize("mels", [80, 128])
def test_filters_equal_transformers(mels):
    from transformers.audio_utils import mel_filter_bank

    reference = mel_filter_bank(201, mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(mels), reference, atol=1e-8)  # float32 of values below 0.03


# 479,840 is the last length whose windows are not reflected at 30 s; 500,000 is cut.
@pytest.mark.parametrize("n", [1, 150, 161, 8_000, 80_000, 80_079, 479_700, 479_841, 480_000, 500_000])
def test_padded_and_native_equal_transformers(extractor, n):
    clip = noise(n)
    reference = extractor(clip, sampling_rate=16_000, return_tensors="np").input_features[0]
    x_BT, n_B = batch([clip])
    padded, m_B = log_mel(x_BT, n_B, extractor.feature_size, padded=True)
    native, _ = log_mel(x_BT, n_B, extractor.feature_size)
    m = -(-min(n, MAX_SAMPLES) // 160)
    assert m_B.tolist() == [m]
    assert native.shape[2] == m
    np.testing.assert_allclose(padded[0].numpy(), reference, atol=ATOL)
    np.testing.assert_allclose(native[0].numpy(), reference[:, :m], atol=ATOL)


def test_the_clamp_hears_a_click_at_the_very_end(extractor):
    clip = noise(16_000) * 1e-3
    clip[-1] = 1.0  # loudest in the window centred behind the last frame
    reference = extractor(clip, sampling_rate=16_000, return_tensors="np").input_features[0]
    native, _ = log_mel(*batch([clip]), extractor.feature_size)
    np.testing.assert_allclose(native[0].numpy(), reference[:, :100], atol=ATOL)


def test_silence_equals_transformers(extractor):
    clip = np.zeros(16_000, np.float32)
    reference = extractor(clip, sampling_rate=16_000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(log_mel(*batch([clip]), extractor.feature_size, padded=True)[0][0].numpy(), reference)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_a_clip_alone_equals_the_clip_in_any_batch(lengths, padded, dirty):
    clips = [noise(n, i) for i, n in enumerate(lengths)]
    x_BT, n_B = batch(clips)
    if dirty:  # what lies beyond a clip's end is nobody's business
        x_BT[torch.arange(x_BT.shape[1]) >= n_B[:, None]] = 7.0
    mel_BMF, m_B = log_mel(x_BT, n_B, 80, padded)
    for row, m, clip in zip(mel_BMF, m_B, clips, strict=True):
        alone, _ = log_mel(*batch([clip]), 80, padded)
        width = 3000 if padded else m
        np.testing.assert_allclose(row[:, :width], alone[0], atol=1e-5)  # the same sums, other vector lanes
        assert not row[:, width:].any()


def test_it_is_differentiable_after_a_first_call_in_inference_mode():
    from aut.audio import mel

    mel._filters.cache_clear()
    mel._window.cache_clear()
    x_BT, n_B = batch([noise(4_000)])
    with torch.inference_mode():
        log_mel(x_BT, n_B, 80)
    x_BT.requires_grad_(True)
    log_mel(x_BT, n_B, 80)[0].sum().backward()
    assert torch.isfinite(x_BT.grad).all()
    assert x_BT.grad.any()


def test_autocast_changes_nothing():
    x_BT, n_B = batch([noise(16_000)])
    plain, _ = log_mel(x_BT, n_B, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = log_mel(x_BT, n_B, 80)
    assert torch.equal(plain, cast)
