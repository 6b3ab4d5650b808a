"""The page in a real browser: a clip in, classes and pictures out; an error is told; nothing goes elsewhere."""

import os
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from aut.serving.app import create
from aut.serving.service import Service
from tests.unit.browser import browser, chromium
from tests.unit.serving_fixture import Shelf, file_of, sound, write_version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium"),
]
PICTURES = os.environ.get("AUT_TEST_PICTURES")  # a folder: screenshots are kept there


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return write_version(tmp_path_factory.mktemp("versions") / "1")


@pytest.fixture
def address(version):
    yield from _served(Service(Shelf({"1": version}, "1"), poll_s=0.1))


@pytest.fixture
def guarded(version):
    yield from _served(Service(Shelf({"1": version}, "1"), poll_s=0.1, key="sesame"))


def _served(service):
    server = uvicorn.Server(uvicorn.Config(create(service), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 120  # on a busy machine
        while not server.started or service.watcher.answering is None:
            assert time.monotonic() < end, service.watcher.status()
            thread.join(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page(tmp_path):
    with browser(tmp_path / "profile") as opened:
        yield opened


def text(page, selector):
    return page.run(f"document.querySelector('{selector}').innerText")


def test_a_clip_is_heard_shown_and_classified(page, address, tmp_path):
    clip = tmp_path / "clip.flac"
    clip.write_bytes(file_of(sound(2.5, rate_hz=44_100), 44_100, "FLAC", "PCM_16"))
    page.call("Page.navigate", url=address)
    page.until("document.querySelector('#answering')?.innerText.includes('whisper-aut/1')")
    page.choose("#file", clip)
    page.until("document.querySelector('#status').innerText.startsWith('Done')")
    assert "clip.flac, 2.5" in text(page, "#clip")
    cards = page.run("[...document.querySelectorAll('.card')].map(c => c.innerText)")
    assert len(cards) == 2
    assert "rain" in cards[0]
    assert "%" in cards[0]
    assert "Nearest clips" in cards[1]
    assert "words/" in cards[1]
    for name in ("wave", "mel"):  # both pictures have been drawn
        pixels = f"document.querySelector('#{name}').getContext('2d').getImageData(0, 0, 1200, 140).data"
        assert page.run(f"new Set({pixels}).size") > 4
    assert page.run("document.querySelector('#mel').getAttribute('aria-label').length") > 0
    assert "the gain is above zero" in text(page, "#evidence")
    assert {url.removeprefix(address).partition("?")[0] for url in page.requested()} >= {"/"}
    assert all(url.startswith(address) for url in page.requested())
    assert page.complaints() == []
    for width in (1100, 360):
        for dark in (False, True):
            page.show(width, dark)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), f"it scrolls sideways at {width}"
            if PICTURES:
                page.picture(Path(PICTURES) / f"page-{width}-{'dark' if dark else 'light'}.png")


def test_what_is_no_audio_is_told_and_the_next_clip_works(page, address, tmp_path):
    broken, clip = tmp_path / "broken.wav", tmp_path / "clip.wav"
    broken.write_bytes(b"RIFF and then nothing")
    clip.write_bytes(file_of(sound(0.5)))
    page.call("Page.navigate", url=address)
    page.until("document.querySelector('#facts')?.children.length > 0")
    page.choose("#file", broken)
    page.until("document.querySelector('#error').innerText.length > 0")
    assert page.run("document.querySelector('#results').hidden")
    assert page.run("document.querySelector('#error').getAttribute('role')") == "alert"
    if PICTURES:
        page.show(720)
        page.picture(Path(PICTURES) / "page-error.png")
    page.choose("#file", clip)
    page.until("document.querySelector('#status').innerText.startsWith('Done')")
    assert text(page, "#error") == ""


def test_a_recording_becomes_a_clip(page, address):
    page.call("Page.navigate", url=address)
    page.until("document.querySelector('#facts')?.children.length > 0")
    page.run("document.querySelector('#record').click()")
    page.until("document.querySelector('#record').getAttribute('aria-pressed') === 'true'")
    page.run("new Promise(done => setTimeout(done, 1200))")
    page.run("document.querySelector('#record').click()")
    page.until("document.querySelector('#status').innerText.startsWith('Done')")
    assert "recording.wav" in text(page, "#clip")


def test_a_guarded_server_asks_for_its_key_once(page, guarded, tmp_path):
    clip = tmp_path / "clip.wav"
    clip.write_bytes(file_of(sound(0.5)))
    page.call("Page.navigate", url=guarded)
    page.until("document.querySelector('#key')?.hidden === false")
    page.run("document.querySelector('#secret').value = 'sesame'; document.querySelector('#key button').click()")
    page.until("document.querySelector('#facts').children.length > 0")
    page.choose("#file", clip)
    page.until("document.querySelector('#status').innerText.startsWith('Done')")
    assert page.run("document.querySelector('#key').hidden") is True, "it asked for the key again"
    page.run("document.querySelector('#evidence p a').click()")
    page.until("document.querySelector('#status').innerText.includes('saved as report.html')")
    assert text(page, "#error") == ""


def test_every_control_is_reached_by_keyboard_and_has_a_name(page, address):
    page.call("Page.navigate", url=address)
    page.until("document.querySelector('#facts')?.children.length > 0")
    seen = []
    for _ in range(6):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen.append(page.run("document.activeElement.id || document.activeElement.className"))
    assert {"skip", "file", "record"} <= set(seen)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in tree if n.get("role", {}).get("value") in ("button", "link", "textbox")]
    assert controls
    assert all(n["name"]["value"] for n in controls)
