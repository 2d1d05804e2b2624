"""What tests look at pages with sees what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import browser
from tests.browser import look_at

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STRIPES = "".join(
    f"<p style='height: 20px; background: rgb({7 * i}, {i}, {200 - 5 * i})'>{i}</p>" for i in range(30)
)


def page(folder: Path, body: str, policy: str = "") -> Path:
    path = folder / "page.html"
    path.write_text(f"<!DOCTYPE html><html><head>{policy}</head><body>{body}</body></html>")
    return path


def test_a_page_that_is_fine_is_found_so(tmp_path: Path) -> None:
    look = look_at(
        page(tmp_path, f'{STRIPES}<img src="data:image/png;base64,{DOT}"><a href="#there">there</a>')
    )
    look.check()
    assert look.widths == [1]
    assert "<a href=" in look.dom


@pytest.mark.parametrize(
    "wrong",
    [
        f'<img src="data:image/png;base64,{DOT[:40]}">',
        "<img src='data:image/svg+xml;base64,AAAA'>",
        "<script>console.error('oh')</script>",
        "<script>nothing.there()</script>",
        "<img src='https://example.org/a.png'>",
        "<link rel='stylesheet' href='https://example.org/a.css'>",
        "<a href='https://example.org'>there</a>",
        "<p style='background: url(https://example.org/a.png)'>a</p>",
        "<style>@import 'https://example.org/a.css';</style>",
    ],
)
def test_what_is_wrong_with_a_page_is_found(wrong: str, tmp_path: Path) -> None:
    look = look_at(page(tmp_path, STRIPES + wrong))
    with pytest.raises(AssertionError):
        look.check()


def test_a_blank_page_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="blank"):
        look_at(page(tmp_path, "<div></div>")).check()


def test_what_a_policy_forbids_is_on_the_console(tmp_path: Path) -> None:
    rules = "default-src 'none'; style-src 'unsafe-inline'"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
    look = look_at(page(tmp_path, f'{STRIPES}<img src="data:image/png;base64,{DOT}">', policy))
    assert "violates the following Content Security Policy" in " ".join(look.console)


def test_without_a_browser_a_test_is_skipped_and_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        look_at(page(tmp_path, STRIPES))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="which CI has to install"):
        look_at(page(tmp_path, STRIPES))
