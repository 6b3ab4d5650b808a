"""The screen's page in headless Chromium: both clips of a pair play, also where one lies in a tar."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
import soundfile as sf

from aut.contracts import Silent
from aut.layout import Layout
from aut.stages.screen import screen
from aut.units import RATE_HZ
from tests.unit.browser import Page, browser, chromium
from tests.unit.screen_fixture import params_of, source, write_source
from tests.unit.test_screen import sound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium"),
]
SOURCES = {"pool": source("environment", "environment", "pool"), "esc": source("probe", "environment", "esc")}


class Ranges(SimpleHTTPRequestHandler):
    """Answers a range as a file server does, unless told not to."""

    ranges = True

    def do_GET(self) -> None:
        if not (self.ranges and (asked := self.headers.get("Range", "")).startswith("bytes=") and ".tar" in self.path):
            return super().do_GET()
        start, stop = (int(n) for n in asked.removeprefix("bytes=").split("-"))
        data = Path(self.translate_path(self.path)).read_bytes()[start : stop + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def log_message(self, *_: object) -> None:
        pass


class Whole(Ranges):
    ranges = False


@contextmanager
def served(folder: Path, handler: type[Ranges]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe clip as a file, its copy in a tar of the pool behind another clip, and the page that ties them."""
    folder = tmp_path_factory.mktemp("corpora")
    copy, other = sound(1), sound(2)
    (folder / "esc/audio").mkdir(parents=True)
    (folder / "pool").mkdir()
    sf.write(folder / "esc/audio/p.wav", copy, RATE_HZ)
    with tarfile.open(folder / "pool/a b.tar", "w") as tar:
        for name, pcm_T in (("other", other), ("copy", copy)):
            stream = io.BytesIO()
            sf.write(stream, pcm_T, RATE_HZ, format="WAV")
            member = tarfile.TarInfo(f"{name}.wav")
            member.size = len(stream.getvalue())
            tar.addfile(member, io.BytesIO(stream.getvalue()))
    with tarfile.open(folder / "pool/a b.tar") as tar:
        lies = {m.name.removesuffix(".wav"): (m.offset_data, m.size) for m in tar}
    layout = Layout(folder / "project")
    write_source(layout, "esc", SOURCES["esc"], {"p": copy})
    write_source(layout, "pool", SOURCES["pool"], {"other": other, "copy": copy}, uri=dict.fromkeys(lies, "a b.tar"))
    (part,) = layout.index("environment", "pool").glob("part-*.parquet")
    rows = pl.read_parquet(part)
    at, size = ([lies[i.split("/")[1]][n] for i in rows["id"]] for n in (0, 1))
    rows.with_columns(offset_b=pl.Series(at), size_b=pl.Series(size)).write_parquet(part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUT_WORK", str(folder / "work"))
        screen(params_of(SOURCES, gates=["content"], max_flagged_fraction=1.0), layout, Silent())
    (folder / "report.html").write_bytes((layout.screen / "report.html").read_bytes())
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        yield opened


PLAYS = "document.querySelector('td audio')?.duration > 3"


@pytest.mark.parametrize("handler", [Ranges, Whole])
def test_a_member_is_read_by_its_range(page: Page, corpora: Path, handler: type[Ranges]) -> None:
    with served(corpora, handler) as address:
        page.call("Page.navigate", url=f"{address}/report.html")
        page.until("document.querySelector('button[data-tar]')?.disabled === false")
        page.run(f"box.value = '{address}/'; box.dispatchEvent(new Event('change'))")
        page.run("document.querySelector('button[data-tar]').click()")
        page.until(PLAYS)
        page.run("document.querySelector('a[data-path]').click()")
        page.until("[...document.querySelectorAll('td audio')].filter(a => a.duration > 3).length == 2")


def test_a_member_is_read_from_the_tar_that_is_chosen(page: Page, corpora: Path) -> None:
    page.call("Page.navigate", url=(corpora / "report.html").as_uri())
    page.until("document.querySelector('button[data-tar]')?.disabled === false")
    page.run("document.querySelector('button[data-tar]').click()")
    assert "pool/a b.tar" in page.run("document.getElementById('told').textContent")
    page.choose("#tar", corpora / "pool/a b.tar")
    page.until(PLAYS)
    assert page.run("document.getElementById('told').textContent") == ""


def test_a_tar_that_is_not_there_is_said(page: Page, corpora: Path) -> None:
    with served(corpora, Ranges) as address:
        page.call("Page.navigate", url=f"{address}/report.html")
        page.until("document.querySelector('button[data-tar]')?.disabled === false")
        page.run(f"box.value = '{address}/elsewhere'")
        page.run("document.querySelector('button[data-tar]').click()")
        page.until("document.getElementById('told').textContent.startsWith('Not to be had')")
