"""The page in a real browser: a clip in, classes and pictures out; an error is told; nothing goes elsewhere."""

import os
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
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
KEY = "Schlüssel-鍵"  # beyond Latin-1, which is all that a header holds as text
HURRY = "const wait = setTimeout; window.setTimeout = (call, ms) => wait(call, ms / 20)"
COUNT = "window.asked = 0; const real = fetch; window.fetch = (...all) => { asked++; return real(...all); }"
STREAMS = (
    "const streams = [], given = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
    "const keep = (stream) => { streams.push(stream); return stream; }"
)
LIVE = "streams.flatMap(s => s.getTracks()).filter(track => track.readyState === 'live').length"
PICTURES = os.environ.get("AUT_TEST_PICTURES")  # a folder: screenshots are kept there


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return write_version(tmp_path_factory.mktemp("versions") / "1")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A version with other weights and a gate that did not pass."""
    folder = write_version(tmp_path_factory.mktemp("versions") / "2", seed=1)
    facts = folder / "evidence.json"
    facts.write_text(facts.read_text().replace("the gain is above zero", "the gain is lost"))
    return folder


@pytest.fixture
def shelf(version, other):
    return Shelf({"1": version, "2": other}, "1")


@pytest.fixture(scope="module")
def address(version):
    """A server whose alias nobody moves."""
    with served(Service(Shelf({"1": version}, "1"), poll_s=0.1)) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(version):
    with served(Service(Shelf({"1": version}, "1"), poll_s=0.1, key=KEY)) as url:
        yield url


@pytest.fixture
def moving(shelf):
    with served(Service(shelf, poll_s=0.1)) as url:
        yield url


@contextmanager
def served(service):
    """The address of a service that has looked for its version."""
    server = uvicorn.Server(uvicorn.Config(create(service), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 120  # on a busy machine
        while not server.started or not service.watcher.looked:
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


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(file_of(sound(0.5)))
    return path


def opened(page, address, *scripts):
    """Goes to the page, with scripts run before its own."""
    for script in scripts:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    page.call("Page.navigate", url=address)
    page.until("document.readyState === 'complete' && location.protocol === 'http:'")


def text(page, selector):
    return page.run(f"document.querySelector('{selector}').innerText")


def until_shown(page, version=1):
    page.until(f"document.querySelector('#facts')?.innerText.includes('whisper-aut/{version}')")


def until_done(page):
    page.until("document.querySelector('#status').innerText.startsWith('Done')")


def pictures(page, name):
    """Nothing sticks out at any width; where asked for, how it looks is kept."""
    for width in (1100, 360):
        for dark in (False, True):
            page.show(width, dark)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), f"it scrolls sideways at {width}"
            if PICTURES:
                page.picture(Path(PICTURES) / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def give_key(page, key):
    page.run(f"document.querySelector('#secret').value = '{key}'; document.querySelector('#key button').click()")


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
    pictures(page, "result")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.wav", b"RIFF and then nothing", "no recording that can be read here: wav, flac, ogg and mp3 are."),
        ("empty.wav", b"", "the file is empty."),
        ("cut.wav", file_of(sound(0.5))[:9_000], "it ends too early, the file is not whole."),
        ("long.wav", file_of(np.zeros(2_000 * 301), 2_000), "it lasts 301.0 s, the limit is 300 s."),
        ("large.wav", bytes(40 << 20), "it is over the limit of 32 MB."),
    ],
)
def test_what_cannot_be_heard_is_told_by_its_name_and_the_next_clip_works(
    page, address, tmp_path, clip, name, content, said
):
    opened(page, address)
    until_shown(page)
    (tmp_path / name).write_bytes(content)
    page.choose("#file", tmp_path / name)
    page.until("document.querySelector('#error').innerText.length > 0")
    assert text(page, "#error") == f"{name}: {said}"
    assert page.run("document.querySelector('#results').hidden && document.querySelector('#skip').hidden")
    assert page.run("document.querySelector('#error').getAttribute('role')") == "alert"
    pictures(page, "error")
    page.choose("#file", clip)
    until_done(page)
    assert text(page, "#error") == ""


@pytest.mark.parametrize("selector", ["#drop", "header"])
def test_a_file_is_heard_wherever_it_is_dropped(page, address, clip, selector):
    opened(page, address)
    until_shown(page)
    page.drop(selector, clip)
    until_done(page)
    assert "clip.wav" in text(page, "#clip")
    assert page.run("document.querySelector('#drop').className") == ""
    assert page.run("location.pathname") == "/"


def test_of_several_files_the_first_is_heard_and_the_page_says_so(page, address, clip, tmp_path):
    other = tmp_path / "other.wav"
    other.write_bytes(clip.read_bytes())
    opened(page, address)
    until_shown(page)
    page.drop("#drop", clip, other)
    until_done(page)
    assert text(page, "#status").startswith("Done: clip.wav")
    assert text(page, "#status").endswith("Of 2 files the first was heard.")


def test_a_server_that_is_gone_is_told(page, shelf, clip):
    with served(Service(shelf, poll_s=0.1)) as address:
        opened(page, address, HURRY)
        until_shown(page)
    page.choose("#file", clip)
    page.until("document.querySelector('#error').innerText === 'clip.wav: the server does not answer.'")
    page.until("document.querySelector('#answering').innerText === 'The server does not answer.'")
    assert text(page, "#facts") == "", "nothing answers"


def test_results_of_the_clip_before_are_marked_while_the_next_is_asked(page, address, tmp_path, clip):
    slowly = "const real = fetch; window.fetch = async (...all) => { await window.held; return real(...all); }"
    opened(page, address, slowly)
    until_shown(page)
    page.choose("#file", clip)
    until_done(page)
    busy = "document.querySelector('#results').getAttribute('aria-busy')"
    assert page.run(busy) is None
    page.run("window.held = new Promise(done => window.release = done); 0")
    page.choose("#file", clip.rename(tmp_path / "second.wav"))
    page.until("document.querySelector('#status').innerText.startsWith('Listening to second')")
    assert "clip.wav" in text(page, "#clip")
    assert page.run(busy) == "true"
    assert float(page.run("getComputedStyle(document.querySelector('#results')).opacity")) < 1
    page.run("release()")
    until_done(page)
    assert "second.wav" in text(page, "#clip")
    assert page.run(busy) is None


def test_a_silent_clip_is_said_to_be(page, address, tmp_path):
    silent = tmp_path / "silent.wav"
    silent.write_bytes(file_of(np.zeros(8_000)))
    opened(page, address)
    until_shown(page)
    page.choose("#file", silent)
    until_done(page)
    assert "The clip is silent." in text(page, "#axis")
    assert page.run("document.querySelector('#wave').getAttribute('aria-label')") == "Waveform, 0.5 s, silent"


def press(page):
    page.run("document.querySelector('#record').click()")


def until_recording(page, on=True):
    page.until(f"document.querySelector('#record').innerText === '{'Stop' if on else 'Record'}'")


def test_a_recording_becomes_a_clip(page, address):
    opened(page, address)
    until_shown(page)
    press(page)
    until_recording(page)
    page.run("new Promise(done => setTimeout(done, 1200))")
    press(page)
    until_done(page)
    assert "recording.wav" in text(page, "#clip")
    assert text(page, "#record") == "Record"


def test_a_second_press_while_the_microphone_is_asked_for_starts_nothing(page, address):
    slowly = "async (what) => { await new Promise(done => setTimeout(done, 500)); return keep(await given(what)); }"
    opened(page, address, STREAMS, f"navigator.mediaDevices.getUserMedia = {slowly}")
    until_shown(page)
    press(page)
    press(page)
    until_recording(page)
    assert page.run("streams.length") == 1
    page.run("new Promise(done => setTimeout(done, 600))")
    press(page)
    until_done(page)
    assert page.run(LIVE) == 0, "the microphone is still on"


def test_a_recorder_that_cannot_be_made_leaves_no_microphone_on(page, address):
    broken = "window.MediaRecorder = class { constructor() { throw new Error() } }"
    opened(
        page, address, STREAMS, "navigator.mediaDevices.getUserMedia = async (what) => keep(await given(what))", broken
    )
    until_shown(page)
    press(page)
    page.until("document.querySelector('#error').innerText.includes('cannot record')")
    assert page.run("streams.length") == 1
    assert page.run(LIVE) == 0
    assert text(page, "#record") == "Record"


def test_a_recording_has_its_own_thirty_seconds(page, address):
    """Thirty are three here. The first one's timer would end the second after one and a half."""
    opened(page, address, HURRY.replace("20", "10"))
    until_shown(page)
    press(page)
    until_recording(page)
    page.run("new Promise(done => wait(done, 1500))")
    press(page)
    until_done(page)
    press(page)
    until_recording(page)
    begun = time.monotonic()
    until_recording(page, on=False)
    assert time.monotonic() - begun > 2.5


def test_where_a_browser_does_not_record_the_page_says_why(page, address):
    opened(page, address.replace("127.0.0.1", "elsewhere.test"))
    until_shown(page)
    assert page.run("document.querySelector('#record').disabled") is True
    pictures(page, "unrecorded")
    assert text(page, "#unrecorded") == "Browsers record on https or localhost only."


def test_a_moved_alias_is_shown_with_its_evidence(page, moving, shelf, clip):
    opened(page, moving)
    until_shown(page)
    assert "the gain is above zero" in text(page, "#evidence")
    shelf.number = "2"
    page.until("fetch('/v1/models').then(r => r.json()).then(body => body.data[0].version === '2')")
    page.choose("#file", clip)
    until_shown(page, 2)
    until_done(page)
    assert "whisper-aut/2" in text(page, "#answering")
    assert "the gain is lost" in text(page, "#evidence")
    assert "heard by models:/whisper-aut/2" in text(page, "#clip")
    shelf.number = "1"  # nobody asks: who comes back to the page sees it
    page.until("fetch('/v1/models').then(r => r.json()).then(body => body.data[0].version === '1')")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    until_shown(page, 1)
    assert "heard by models:/whisper-aut/2" in text(page, "#clip"), "who computed an answer does not change"


def test_a_page_that_is_only_looked_at_follows_the_alias(page, moving, shelf):
    opened(page, moving, HURRY)
    until_shown(page)
    shelf.number = "2"
    until_shown(page, 2)


def test_a_clip_given_before_there_is_a_version_waits_for_it(page, shelf, clip):
    shelf.number = None
    with served(Service(shelf, poll_s=0.1)) as address:
        opened(page, address, HURRY, COUNT)
        page.until("document.querySelector('#absent').innerText.includes('aut run --profile demo')")
        assert text(page, "#answering") == "No version answers."
        pictures(page, "absent")
        page.choose("#file", clip)
        page.until("document.querySelector('#status').innerText.includes('waits for a version')")
        changes = "new MutationObserver(all => window.changes += all.length)"
        page.run(f"window.changes = 0; {changes}.observe(document.querySelector('#absent'), {{childList: true}})")
        page.run("window.asked = 0")
        page.until("window.asked >= 6")  # three looks
        assert page.run("window.changes") == 0, "the alert was read out again"
        shelf.number = "1"
        until_shown(page)
        until_done(page)
    assert text(page, "#absent") == text(page, "#error") == ""
    assert "whisper-aut/1" in text(page, "#answering")


def test_a_guarded_server_asks_for_its_key_once(page, guarded, tmp_path, clip):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF and then nothing")
    opened(page, guarded)
    page.until("document.querySelector('#key')?.hidden === false")
    assert text(page, "#answering") == "A key is needed."
    assert page.run("[...document.querySelectorAll('.bad')].every(p => p.innerText === '')")
    assert page.run("document.querySelector('#version').checkVisibility()") is False, "a heading over nothing"
    page.choose("#file", clip)
    page.until("document.querySelector('#status').innerText === 'clip.wav waits for a key.'")
    give_key(page, KEY)
    until_shown(page)
    until_done(page)  # without being given again
    assert page.run("document.querySelector('#key').hidden") is True, "it asked for the key again"
    assert page.run("document.activeElement.id") == "file"
    page.run("document.querySelector('#evidence p a').click()")
    page.until("document.querySelector('#status').innerText.includes('saved as report.html')")
    assert text(page, "#error") == ""
    page.choose("#file", broken)
    page.until("document.querySelector('#error').innerText.length > 0")
    assert page.run("document.querySelector('#key').hidden") is True


def test_a_wrong_key_is_told_and_no_more_is_asked_until_another_comes(page, guarded):
    opened(page, guarded, HURRY, COUNT)
    page.until("document.querySelector('#key')?.hidden === false")
    for key in ("wrong", "鍵", "wrong"):
        page.run("document.querySelector('#wrong').textContent = ''")
        give_key(page, key)
        page.until("document.querySelector('#wrong').innerText === 'That is not the key of this server.'")
        assert page.run("document.activeElement.id") == "secret"
    pictures(page, "wrong")
    page.run("window.asked = 0")
    page.run("new Promise(done => wait(done, 1000))")  # three looks of a hurried page
    assert page.run("window.asked") == 0
    give_key(page, KEY)
    until_shown(page)
    assert text(page, "#wrong") == ""
    page.run("window.asked = 0")
    page.run("new Promise(done => wait(done, 3500))")
    assert 1 <= page.run("window.asked") <= 3, "a look each 30 s (here 1.5), whatever was tried before"


def test_every_control_is_reached_by_keyboard_and_has_a_name(page, address, clip):
    opened(page, address)
    until_shown(page)
    pictures(page, "start")
    assert "skip" not in reached(page), "there is nothing to skip to"
    page.choose("#file", clip)
    until_done(page)
    page.run("document.activeElement.blur()")
    assert {"skip", "file", "record", "player"} <= set(reached(page))
    page.run("document.querySelector('#skip').click()")
    assert page.run("document.activeElement.id") == "results"
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in tree if n.get("role", {}).get("value") in ("button", "link", "textbox")]
    assert controls
    assert all(n["name"]["value"] for n in controls)


def reached(page):
    """What the next tabs lead to."""
    seen = []
    for _ in range(6):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen.append(page.run("document.activeElement.id"))
    return seen


def test_the_fields_border_is_seen_in_light_and_dark(page, guarded):
    opened(page, guarded)
    page.until("document.querySelector('#key')?.hidden === false")
    pictures(page, "key")
    for dark in (False, True):
        page.show(360, dark)
        border, within = (colour(page, "#secret", kind) for kind in ("borderTopColor", "backgroundColor"))
        for ground in (within, colour(page, "body", "backgroundColor")):
            assert contrast(border, ground) >= 3  # WCAG 2.2, 1.4.11


def colour(page, selector, kind):
    found = page.run(f"getComputedStyle(document.querySelector('{selector}')).{kind}")
    return [int(part) for part in re.findall(r"\d+", found)[:3]]


def contrast(one, other):
    """WCAG 2.2's ratio of relative luminances."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in np.array([one, other]) / 255]
    low, high = sorted(float(c @ (0.2126, 0.7152, 0.0722)) for c in linear)
    return (high + 0.05) / (low + 0.05)
