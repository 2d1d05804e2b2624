"""No slower than torch's own transforms at the same chunk: ratios of runs in turns, which bear noise, and
which a real loss does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

import jacjobs
from benchmarks.speed import compute, page
from benchmarks.speed.pairs import in_turns, ratio
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.strategy import Chunk
from tests.test_transforms import calls_of

ROUNDS, TIMES = 15, 3
LEAST = 0.7
"""Of the peer's throughput, at the best of three times: a loss is there each time, a busy machine is not."""
WEIGHTS = [torch.randn(384, 384) / 20 for _ in range(3)]
X = torch.randn(384)


def network(x: Tensor) -> Tensor:
    for weight in WEIGHTS:
        x = torch.tanh(weight @ x)
    return x


def of_some(x: Tensor) -> Tensor:
    return network(x)[:16]


def throughput(strategy: str, chunk: int, peer: Callable[[], Any]) -> float:
    """Against the peer's."""
    ours = jacjobs.jacobian(network, strategy=strategy, chunk=chunk)
    torch.testing.assert_close(ours(X), peer())
    return best_ratio(peer, lambda: ours(X))


def best_ratio(peer: Callable[[], Any], ours: Callable[[], Any]) -> float:
    found = []
    for _ in range(TIMES):
        seconds = in_turns({"peer": peer, "ours": ours}, ROUNDS)
        found.append(ratio(seconds["peer"], seconds["ours"]))
    return max(found)


def test_rows_against_jacrev() -> None:
    assert throughput("vjp/vmap", 96, lambda: jacrev(network, chunk_size=96)(X)) > LEAST


def test_columns_against_jacfwd() -> None:
    assert throughput("jvp/vmap", 384, lambda: jacfwd(network)(X)) > LEAST


def test_many_points_against_vmap_of_jacrev() -> None:
    x = torch.randn(32, 384)
    ours = jacjobs.jacobian(of_some, in_dims=0, strategy="vjp/vmap", chunk=32 * 16)
    peer = vmap(jacrev(of_some))
    torch.testing.assert_close(ours(x), peer(x))
    assert best_ratio(lambda: peer(x), lambda: ours(x)) > LEAST


@pytest.mark.parametrize(
    ("strategy", "peer"), {"vjp/vmap": jacrev, "jvp/vmap": jacfwd, "double-vjp/vmap": jacfwd}.items()
)
def test_around_a_small_function_there_is_half_as_much_python(strategy: str, peer: Any) -> None:
    """Of functions called, which no busy machine changes: there, and on a GPU, they are what takes time."""
    x = torch.randn(3)
    ours, theirs = jacjobs.jacobian(torch.sin, strategy=strategy, chunk=3), peer(torch.sin)
    assert 2 * calls_of(lambda: ours(x)) <= calls_of(lambda: theirs(x))


def test_a_real_loss_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk made twice."""
    maker = type(STRATEGIES["vjp/vmap"])
    chunks = maker.chunks

    def twice(self: Any, *arguments: Any, **options: Any) -> Iterator[Chunk]:
        for _ in chunks(self, *arguments, **options):
            pass
        yield from chunks(self, *arguments, **options)

    monkeypatch.setattr(maker, "chunks", twice)
    assert throughput("vjp/vmap", 96, lambda: jacrev(network, chunk_size=96)(X)) < LEAST


def test_a_row_is_the_median_of_several_processes() -> None:
    def row(ratio: float, peer: str, choice: str, **seconds: float) -> dict[str, Any]:
        against = {"peer": peer, "ratio": ratio}
        content = {
            "function": "f",
            "choice": choice,
            "choice_compiled": "c",
            "first_seconds": {"jacjobs": ratio},
        }
        return {**content, "seconds": seconds, "alone_seconds": seconds, "plain": against, "compiled": None}

    rows = [row(0.9, "a", "x", a=1, ours=2), row(1.2, "b", "y", b=5, ours=9), row(1.0, "c", "y", a=3, ours=4)]
    together = compute.together(rows)
    assert together["plain"] == {"peer": "c", "ratio": 1.0, "ratios": [0.9, 1.0, 1.2]}
    assert together["compiled"] is None
    assert together["seconds"] == {"a": 2, "b": 5, "ours": 4}
    assert (together["choice"], together["first_seconds"]) == ("y", {"jacjobs": 0.9})


def test_who_was_far_behind_is_not_looked_at_again() -> None:
    peers = ["jacfwd", "jacrev", "vmap(jacrev), chunked", "loop"]
    assert compute.near_the_best({}, peers) == dict.fromkeys(peers, 0)
    before = {"jacfwd": 9.0, "jacrev, chunk 1,024": 4.5, "vmap(jacrev), chunked, chunk 64": 3.0, "JAX": 0.1}
    before["jacrev, chunk 64"] = 5.0
    found = compute.near_the_best(before, peers)
    assert found == {"jacfwd": 0, "jacrev": 1024, "vmap(jacrev), chunked": 64, "loop": 0}
    before["jacfwd"] = 9.1
    assert "jacfwd" not in compute.near_the_best(before, peers)
    assert compute._of_each(min, [before, {"jacfwd": 1.0}])["jacfwd"] == 1.0


def test_the_readmes_table_is_that_of_the_measurements_and_every_loss_has_a_reason() -> None:
    found = page.read()
    readme = page.README.read_text(encoding="utf-8")
    assert readme == page.with_table(readme, found), "run `python -m benchmarks.speed`"
    assert page.PAGE.read_text(encoding="utf-8") == page.page(found)
    rows = found["compute"]["rows"]
    assert len({row["function"] for row in rows}) >= 11
    for row in rows:
        lost = [
            kind for kind in ("plain", "compiled", "all") if row[kind] and row[kind]["ratio"] < page.NOISE
        ]
        assert not lost or page.why(row["function"]), row["function"]
        assert all(math.isfinite(seconds) for seconds in row["seconds"].values())


def test_a_loss_without_a_reason_makes_no_page() -> None:
    found = page.read()
    row = {**found["compute"]["rows"][0], "function": "another", "all": {"peer": "somebody", "ratio": 0.5}}
    with pytest.raises(KeyError, match="another"):
        page.compute({"rows": [row]})
