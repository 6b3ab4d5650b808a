"""The picture of a clip: what is short is in it, and its brightness does not depend on where a sound begins."""

import base64

import numpy as np
import pytest

from aut.audio.mel import FLOOR, RANGE
from aut.serving.features import COLUMNS, DEPTH, MELS, SILENCE, heard, picture


def columns(clip):
    mel = heard(clip)["mel"]
    return np.frombuffer(base64.b64decode(mel["data"]), np.uint8).reshape(mel["frames"], mel["bins"])


def clicked(at_s, seconds=28.0):
    """Quiet noise with 5 ms of a click in it."""
    clip = 1e-3 * np.random.default_rng([1]).standard_normal(round(16_000 * seconds))
    clip[round(16_000 * at_s) + 40 :][:80] += 0.9
    return clip.astype(np.float32)


def test_a_click_is_as_bright_wherever_it_falls():
    means = [columns(clicked(at_s)).mean(axis=1) for at_s in (10.0, 10.01, 10.02, 10.03)]
    peaks, grounds = [m.max() for m in means], [np.median(m) for m in means]
    assert np.ptp(peaks) < 5
    assert np.ptp(grounds) < 5  # all else keeps its brightness, too
    assert min(peaks) > max(grounds) + 30


@pytest.mark.parametrize("seconds", [0.001, 0.5, 7.5, 7.51, 30.0, 45.0])
def test_a_picture_has_a_column_a_frame_and_no_more_than_fit(seconds):
    mel = heard(np.full(max(1, round(seconds * 16_000)), 0.1, np.float32))["mel"]
    assert mel["bins"] == MELS
    assert mel["frames"] == min(COLUMNS, max(1, int(np.ceil(round(seconds * 16_000) / 160))))


def test_silence_is_black_and_a_loud_clip_uses_the_whole_range():
    assert picture(np.zeros(16_000, np.float32)).max() == 0
    loud = picture((0.5 * np.sin(np.arange(16_000))).astype(np.float32))
    assert loud.max() == 255


def test_the_scale_is_the_log_mels_own():
    assert pytest.approx((np.log10(FLOOR) + 4) / 4) == SILENCE
    assert pytest.approx(RANGE / 4) == DEPTH
