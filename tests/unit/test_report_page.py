"""The report in headless Chromium: narrow and wide, light and dark, on paper; nothing beyond its edge, nothing fetched.

AUT_TEST_PICTURES keeps what it looks like.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aut.report.page import write_report
from aut.stages.compare import build_evidence
from tests.unit.browser import Page, browser, chromium
from tests.unit.compare_fixture import params_of, write_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium"),
]
OUTSIDE = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || box.right <= document.documentElement.clientWidth + 1) return false;
  for (let up = e.parentElement; up; up = up.parentElement)
    if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(up).overflowX)) return false;
  return true;
}).map(e => e.tagName + ' ' + e.className)"""
"""Elements beyond the right edge that no scrolling box holds."""
PICTURES = os.environ.get("AUT_TEST_PICTURES")  # a folder: screenshots and the printed pages are kept there


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of your own where AUT_TEST_REPORT names one, else one of made-up predictions."""
    if own := os.environ.get("AUT_TEST_REPORT"):
        return Path(own)
    folder = tmp_path_factory.mktemp("report")
    write_report(build_evidence(params_of(), write_tree(folder / "tree")), folder)
    return folder / "report.html"


@pytest.fixture
def page(tmp_path: Path, report: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        opened.call("Page.navigate", url=report.as_uri())
        opened.until("document.readyState == 'complete' && document.title != ''")
        yield opened


def keep(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"report-{name}.png")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_lies_beyond_the_edge(page: Page, width: int, dark: bool) -> None:
    page.show(width, dark)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OUTSIDE) == []
    keep(page, f"{width}-{'dark' if dark else 'light'}")


def test_the_colours_follow_the_reader_and_can_be_told_apart(page: Page) -> None:
    shades = []
    for dark in (False, True):
        page.show(1280, dark)
        shades.append([luminance(page.run(f"getComputedStyle(document.body).{k}")) for k in COLOURS])
    (ink, paper), (ink_dark, paper_dark) = shades
    assert contrast(ink, paper) >= 4.5  # WCAG 2.2, 1.4.3
    assert contrast(ink_dark, paper_dark) >= 4.5
    assert paper > ink
    assert paper_dark < ink_dark


def test_on_paper_it_is_light_and_fits(page: Page) -> None:
    page.show(1280, dark=True)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.call("Emulation.setDeviceMetricsOverride", width=WIDE, height=700, deviceScaleFactor=1, mobile=False)
    assert page.run("document.documentElement.scrollWidth") <= WIDE
    assert luminance(page.run("getComputedStyle(document.body).color")) < 0.2
    data = base64.b64decode(page.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert data.startswith(b"%PDF")
    if PICTURES:
        (Path(PICTURES) / "report.pdf").write_bytes(data)


def test_tables_are_tables_with_named_columns(page: Page) -> None:
    counts = page.run("[...document.querySelectorAll('table')].map(t => [t.tHead ? t.tHead.rows[0].cells.length : 0,"
                      " ...[...t.tBodies].flatMap(b => [...b.rows].map(r => r.cells.length))])")  # fmt: skip
    assert len(counts) >= 8
    for heads, *rows in counts:
        assert heads
        assert set(rows) <= {heads}
    assert page.run("document.querySelectorAll('thead th:not([scope=col])').length") == 0


def test_nothing_is_fetched_and_nothing_complains(page: Page, report: Path) -> None:
    assert page.requested() in ([], [report.as_uri()])
    assert page.complaints() == []


WIDE = 1047  # CSS pixels of A4, landscape, within margins of 10 mm
COLOURS = ("color", "backgroundColor")


def luminance(colour: str) -> float:
    """WCAG's relative luminance of 'rgb(r, g, b)'."""
    parts = [int(float(c)) / 255 for c in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
