"""docs/faults.md: what goes wrong, what happens then, and what the user reads. Made of what the tests saw.

Every test of a fault records its row, one for each of its parameters where they differ. With
JACJOBS_WRITE_FAULTS=1 the session writes the page; rows of tests that did not run stay. Without it, each test
demands that its row stands there word for word.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "faults.md"
WRITE = "JACJOBS_WRITE_FAULTS"
FILES = ("test_processes.py", "test_disks.py", "test_nodes.py")
HEAD = """\
# What goes wrong, and what happens then

Each section below is a test that causes the fault for real (a kill, a full disk, a lost node) and notes what
it saw: the exit code, and what the user reads. Exit code 0: the run goes on, completes, and its dataset is
the same to the byte as that of an undisturbed run; its manifest says what was lost and why. After every other
one `jacjobs resume` finishes the run, once the cause is gone; `jacjobs/errors.py` lists the codes.

RUN is the path of the run; HOST, PID, NODE and N stand for what differs from run to run.

This page is written by `JACJOBS_WRITE_FAULTS=1 pytest tests/faults`; the tests fail where it is out of date.
"""
_SECTION = re.compile(r"^## ([^\n]*)\n.*?^Test: `(.*?)`$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """event: what goes wrong. caused_by: what the test does. says: what the user reads, of a run that
    completes what its manifest says. test: file::name.
    """

    event: str
    caused_by: str
    happens: str
    code: int
    says: str
    test: str

    def section(self) -> str:
        who = "The user reads" if self.code else "The manifest says"
        said = "\n".join(["```text", *(line.rstrip() for line in self.says.splitlines()), "```"])
        caused_by = self.caused_by[0].upper() + self.caused_by[1:]
        return (
            f"## {self.event}\n\n{caused_by}. {self.happens}\n\n"
            f"**Exit code {self.code}.** {who}:\n\n{said}\n\nTest: `{self.test}`"
        )


class FaultTable:
    """The rows of one session, and those of the page: by test and event."""

    def __init__(self) -> None:
        found = _SECTION.finditer(_page())
        self._sections = {(section[2], section[1]): section[0] for section in found}
        self._ran: set[str] = set()
        self.writes = os.environ.get(WRITE) == "1"

    def record(self, row: Row) -> None:
        if self.writes:
            if row.test not in self._ran:  # what it said in another session may have had another head
                self._sections = {key: text for key, text in self._sections.items() if key[0] != row.test}
            self._ran.add(row.test)
            self._sections[row.test, row.event] = row.section()
            return
        assert self._sections.get((row.test, row.event)) == row.section(), (
            f"docs/faults.md does not say so; run `{WRITE}=1 pytest tests/faults`"
        )

    def write(self) -> None:
        """In the order of the tests in their files; those that are no more are left out."""
        places = {key: (_position(key[0]), key) for key in self._sections}
        known = [key for key in self._sections if places[key][0] is not None]
        sections = [self._sections[key] for key in sorted(known, key=lambda key: places[key])]
        overview = "\n".join(["| what goes wrong | exit code |", "| --- | --- |", *map(_line, sections)])
        PAGE.write_text("\n\n".join([HEAD.rstrip(), overview, *sections]) + "\n", encoding="utf-8")


def normalised(text: str, run: Path | str) -> str:
    """What differs from run to run, replaced by names."""
    for pattern, name in (
        (re.escape(str(run)), "RUN"),
        (re.escape(socket.gethostname()), "HOST"),
        (r"process \d+", "process PID"),
        (r"node [0-9a-f]{8}\b", "node NODE"),
        (r"(worker|assembler)-\d+", r"\1-N"),
        (r"\d{1,3}(,\d{3}){2,}", "N"),
        (r"\d[\d,]* bytes", "N bytes"),
        (r"\d[\d,.]*( s\b|GB\b)", r"N\1"),
    ):
        text = re.sub(pattern, name, text)
    return text


def _line(section: str) -> str:
    """Of a section, in the table at the top."""
    event, code = re.match(r"## (.*)", section), re.search(r"\*\*Exit code (\d+)", section)
    assert event is not None
    assert code is not None
    return f"| {event[1]} | {code[1]} |"


def _page() -> str:
    return PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""


def _position(test: str) -> tuple[int, int] | None:
    """Of a test: its file, and where it is in there; None if it is not."""
    file, _, function = test.partition("::")
    place = (HERE / file).read_text(encoding="utf-8").find(f"def {function}(") if file in FILES else -1
    return (FILES.index(file), place) if place >= 0 else None
