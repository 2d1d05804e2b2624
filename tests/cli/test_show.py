"""What `jacjobs show` prints and draws."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from jacjobs.cli.app import main
from jacjobs.cli.plots.canvas import save
from jacjobs.cli.plots.portrait import draw
from jacjobs.shape import JacobianShape, Segment, segments_of
from jacjobs.store.reader import JacobianDataset, open_run
from jacjobs.store.summary import figures_of
from tests.store.datasets import Form, write_dataset

Leaves = list[tuple[str, tuple[int, ...]]]


def dataset(
    path: Path, J: np.ndarray, outputs: Leaves, inputs: Leaves, without: int | None = None
) -> JacobianDataset:
    rows, columns = segments_of(outputs), segments_of(inputs)
    P, m, n = J.shape
    assert (rows[-1].stop, columns[-1].stop) == (m, n)
    shape = JacobianShape(
        points=P, rows=m, columns=n, dtype=str(J.dtype), outputs=rows, inputs=columns, origin=str(J.dtype)
    )
    form = Form(part_lines=max(1, m // 3), group_records=100)
    write_dataset(path, shape, J, form, run="aa", without=without, finished=without is None)
    return open_run(path)


class Drawing:
    """A figure laid out: its texts as they are drawn, with their boxes in pixels."""

    def __init__(self, figure: Any) -> None:
        self.texts: list[tuple[str, Any]] = []
        canvas = FigureCanvasAgg(figure)
        self.size = canvas.get_width_height()
        plain = Text.draw

        def noted(text: Text, renderer: Any) -> None:
            if text.get_visible() and text.get_text().strip():
                self.texts.append((text.get_text(), text.get_window_extent(renderer)))
            plain(text, renderer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", noted)
            canvas.draw()

    @property
    def overlaps(self) -> list[tuple[str, str]]:
        return [(a, b) for (a, x), (b, y) in itertools.combinations(self.texts, 2) if x.overlaps(y)]

    @property
    def outside(self) -> list[str]:
        width, height = self.size
        return [t for t, b in self.texts if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]


def drawn(J: JacobianDataset, path: Path) -> Drawing:
    figure = draw(J, *figures_of(J))
    save(figure, path)
    assert Image.open(path).width == 1200
    return Drawing(figure)


def chance(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def steep(*shape: int) -> np.ndarray:
    """Of 30 orders of magnitude."""
    return 10 ** np.random.default_rng(0).uniform(-20, 10, shape)


def sparse(size: int) -> np.ndarray:
    return (np.eye(size) + 1e-5 * np.eye(size, k=7) - 1e3 * np.eye(size, k=-size // 3))[None]


def weights(layers: int) -> Leaves:
    return [
        (f"encoder.layer{i}.{name}", shape)
        for i in range(layers)
        for name, shape in (("weight", (8, 9)), ("bias", (8,)))
    ]


HOSTILE = r"$\frac{1}{$ <b>\n" + "x" * 90 + "\u202e"
CASES: dict[str, tuple[np.ndarray, Leaves, Leaves]] = {
    "images": (chance(30, 10, 64).astype(np.float32), [("logits", (10,))], [("pixels", (8, 8))]),
    "large images": (chance(2, 3, 3 * 32 * 40), [("y", (3,))], [("picture", (3, 32, 40))]),
    "weights": (chance(7, 10, 480), [("y", (10,))], weights(6)),
    "many weights": (chance(1, 6, 4800), [("y", (6,))], weights(60)),
    "outputs": (
        chance(1, 1500, 20),
        [("states.final", (500,)), ("b", (3,)), ("states.initial", (997,))],
        [("x", (20,))],
    ),
    "many outputs": (chance(1, 800, 20), [(f"output_{i}", (10,)) for i in range(80)], [("x", (20,))]),
    "many points": (chance(3000, 1, 12), [("loss", ())], [("a", (5,)), ("b", (7,))]),
    "steep": (steep(1, 400, 300), [("y", (400,))], [("x", (300,))]),
    "sparse": (sparse(900), [("residual", (2, 18, 25))], [("state", (2, 18, 25))]),
    "wide": (chance(1, 3, 100_000).astype(np.float32), [("y", (3,))], [("x", (100_000,))]),
    "tall": (chance(1, 100_000, 3).astype(np.float32), [("y", (100_000,))], [("x", (3,))]),
    "zero": (np.zeros((1, 4, 6)), [("y", (4,))], [("x", (6,))]),
    "rank one": (np.ones((2, 40, 30)), [("y", (40,))], [("x", (30,))]),
    "subnormal": (1e-320 * chance(1, 4, 6), [("y", (4,))], [("x", (6,))]),
    "least of all": (np.full((1, 2, 2), 5e-324), [("y", (2,))], [("x", (2,))]),
    "huge": (1e300 * chance(1, 40, 60), [("y", (40,))], [("x", (60,))]),
    "one": (np.ones((1, 1, 1)), [("y", ())], [("x", ())]),
    "not finite": (np.array([[[np.nan, 1, 0], [2, np.inf, 3]]]), [("y", (2,))], [("x", (3,))]),
    "nothing finite": (np.full((1, 2, 3), np.nan), [("y", (2,))], [("x", (3,))]),
    "hostile names": (chance(1, 60, 60), [(HOSTILE, (30,)), ("$", (30,))], [(HOSTILE, (60,))]),
}


@pytest.mark.parametrize("case", CASES)
def test_no_label_lies_on_another_or_outside(case: str, tmp_path: Path) -> None:
    J, outputs, inputs = CASES[case]
    name = r"$\frac{ <b>" if case == "hostile names" else "run"
    drawing = drawn(dataset(tmp_path / name, J, outputs, inputs), tmp_path / "J.png")
    assert len(drawing.texts) > 5
    assert drawing.overlaps == []
    assert drawing.outside == []


def test_a_part_that_is_missing_is_white_and_said(tmp_path: Path) -> None:
    J, outputs, inputs = CASES["images"]
    drawing = drawn(dataset(tmp_path / "run", J, outputs, inputs, without=4), tmp_path / "J.png")
    assert any("white: not there yet" in text for text, _ in drawing.texts)
    assert drawing.overlaps == []


def test_labels_that_overlap_are_noticed(tmp_path: Path) -> None:
    J, outputs, inputs = CASES["weights"]
    figure = draw(J_of := dataset(tmp_path / "run", J, outputs, inputs), *figures_of(J_of))
    figure.text(0.1, 0.5, "one")
    figure.text(0.1, 0.5, "other")
    figure.text(0.99, 0.3, "outside")
    drawing = Drawing(figure)
    assert drawing.overlaps == [("one", "other")]
    assert drawing.outside == ["outside"]


def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[str, int]:
    monkeypatch.setattr(sys, "argv", ["jacjobs", "show", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return said.out + said.err, int(str(caught.value.code))


def test_what_the_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    J = np.zeros((2, 3, 4))
    J[0, 1, 2], J[1, 2, 3], J[1, 0, 0] = -8, 6, 3
    dataset(tmp_path / "run", J, [("y", (3,))], [("a", (3,)), ("b", (1,))])
    said, code = show(monkeypatch, capsys, str(tmp_path / "run"), "--plot", str(tmp_path / "J.png"))
    lines = said.splitlines()
    table = dict(line.split("  ", 1) for line in lines if "  " in line.lstrip())
    table = {key: value.strip() for key, value in table.items()}
    assert code == 0
    assert table["outputs"] == "y 0:3, shape (3,), norm 10.44"
    assert table["inputs"] == "a 0:3, shape (3,), norm 8.544"
    assert "b 3:4, shape (1,), norm 6" in said
    assert table["entries"] == "-8 to 6, 87.5% zero; largest at J[0, 1, 2]"
    assert table["Frobenius norm"] == "10.4403"
    assert table["points"] == "norms 6.708 to 8, median 7.354; largest: 0"
    assert table["rows"] == "norms 3 to 8, median 6; largest: 1"
    assert table["columns"] == "norms 0 to 8, median 4.5; largest: 2"
    assert table["singular values"] == "8 to 0, all 4"
    assert table["effective rank"].startswith(f"{109 / 64:.4g} of 4")
    assert lines[-1] == str(tmp_path / "J.png")
    assert Image.open(tmp_path / "J.png").width == 1200
    said, code = show(monkeypatch, capsys, str(tmp_path / "run"), "--json")
    content = json.loads(said)
    assert [Segment(**{k: v for k, v in s.items() if k != "norm"}).name for s in content["inputs"]] == [
        "a",
        "b",
    ]
    assert content["singular_values"]["values"] == pytest.approx([8, 6, 3, 0])
    assert content["row_norms"] == {"min": 3, "median": 6, "max": 8, "largest": 1}


def test_a_picture_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(tmp_path / "run", np.ones((1, 2, 2)), [("y", (2,))], [("x", (2,))])
    for path in ("nowhere/J.png", "J.nonsense"):
        said, code = show(monkeypatch, capsys, str(tmp_path / "run"), "--plot", str(tmp_path / path))
        assert code == 2
        assert said.splitlines()[-1].startswith(f"jacjobs: picture {tmp_path / path}: got ")
