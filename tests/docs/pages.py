"""The code blocks of the pages, and what to make of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "jobs/README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
}
LANGUAGES = {"python", "sh", "yaml", "text"}


@dataclass(frozen=True)
class Block:
    """line: of the page, where it begins. file: what it is to be saved as, if the page says so."""

    page: str
    line: int
    language: str
    content: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command; comments are none, and a line that ends with a backslash goes on."""
        for line in re.sub(r"\\\n\s*", " ", self.content).splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(page: str) -> list[Block]:
    """All of a page. A block without a language is one of language ''."""
    found = []
    for token in MarkdownIt("commonmark").parse(PAGES[page].read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language, *more = token.info.split() or [""]
            named = dict(word.split("=", 1) for word in more)
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, language, token.content, named.get("file")))
    return found
