"""A page as Chromium sees it, with the network cut: what its console says, which pictures decode, whether it
is blank, and whether it points anywhere outside.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# fmt: off
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1200,2400",
    "--virtual-time-budget=3000", "--dump-dom",
]
# fmt: on
SECONDS = 120
POLICY = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")
PROBE = """<script>
addEventListener("load", () => {
  const widths = [...document.images].map(image => image.naturalWidth);
  document.documentElement.setAttribute("data-widths", JSON.stringify(widths));
});
</script>"""


@dataclass(frozen=True)
class Look:
    """
    console:  what the page made Chromium say.
    dom:      the document, as it was parsed.
    widths:   of the pictures, in pixels; 0 of one that does not decode.
    outside:  addresses in it that are neither data nor places of its own.
    colours:  how many its picture has; a blank one has one.
    """

    console: list[str]
    dom: str
    widths: list[int]
    outside: list[str]
    colours: int

    def check(self) -> None:
        assert not self.console
        assert not self.outside
        assert 0 not in self.widths
        assert self.colours > 20, "blank"


def look_at(page: Path) -> Look:
    """Skips the test where there is no Chromium, and fails it in CI."""
    browser = _browser()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        seen = _run(browser, page, f"--screenshot={shot}")
        pixels = image.imread(shot)[::3, ::3, :3]
        # Its policy lets no script run, so pictures are measured in a copy without one.
        text = POLICY.sub("", page.read_text(encoding="utf-8"))
        copy = Path(folder) / "copy.html"
        copy.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
        measured = re.search(r'data-widths="([^"]*)"', _run(browser, copy).stdout)
    assert measured is not None, "the copy did not load"
    return Look(
        console=[line for line in seen.stderr.splitlines() if _is_of(line, page)],
        dom=seen.stdout,
        widths=json.loads(unescape(measured[1])),
        outside=outside(page.read_text(encoding="utf-8")),
        colours=len({tuple(pixel) for row in (pixels * 255).astype(int).tolist() for pixel in row}),
    )


def _browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, which CI has to install")
        pytest.skip("no Chromium here")
    return found


def _run(browser: str, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [browser, *OPTIONS, f"--user-data-dir={profile}", *options, page.absolute().as_uri()],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )


def _is_of(line: str, page: Path) -> bool:
    """What comes from the page, and not from a Chromium that finds no desktop."""
    return "CONSOLE" in line or (page.name in line and "bytes written" not in line)


class _Addresses(HTMLParser):
    KEYS = ("src", "href", "srcset", "action", "formaction", "poster", "data", "xlink:href", "background")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key in self.KEYS and value is not None:
                self.found.append(value)
            if key == "style" and value is not None:
                self.found += re.findall(r"url\(([^)]*)\)", value)

    def handle_data(self, text: str) -> None:
        if self.cdata_elem == "style":
            self.found += re.findall(r"url\(([^)]*)\)", text) + re.findall(r"@import\s*([^;]*)", text)


def outside(html: str) -> list[str]:
    parser = _Addresses()
    parser.feed(html)
    return [one for one in parser.found if not one.strip("'\" ").startswith(("data:", "#"))]
