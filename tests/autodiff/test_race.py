"""The choice of `jacjobs.jacobian`: the fastest of what fits, by timings, imaginary ones and real ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import jacjobs
from jacjobs.autodiff import race as racing
from jacjobs.autodiff import timing
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.jacobian import _quick_too
from jacjobs.autodiff.race import LEAST_SECONDS, Race, chunks_of
from jacjobs.autodiff.timing import Pass
from jacjobs.shape import JacobianShape, segments_of

VMAPS = ("vjp/vmap", "jvp/vmap", "double-vjp/vmap")


def shape_of(rows: int, columns: int, points: int = 1) -> JacobianShape:
    return JacobianShape(
        points=points,
        rows=rows,
        columns=columns,
        dtype="float32",
        outputs=segments_of([("y", (rows,))]),
        inputs=segments_of([("x", (columns,))]),
    )


class Device:
    """A chunk of each strategy takes `seconds(strategy, chunk)`; from `full` on there is no memory."""

    def __init__(self, seconds: Callable[[str, int], float], full: int = 1 << 60, setup: float = 0.0) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, int]] = []
        self._seconds = seconds
        self._full = full
        self._setup = setup

    def clock(self) -> float:
        return self.now

    def timer(self, strategy: str, chunk: int, warm: bool) -> Pass | None:
        self.asked.append((strategy, chunk))
        if chunk >= self._full:
            return None
        one = self._seconds(strategy, chunk)
        self.now += (4 if warm else 2) * one + self._setup
        return Pass(self._setup, one)

    def winner(self, shape: JacobianShape, names: Sequence[str] = VMAPS) -> tuple[str, int]:
        return Race(shape, names, self.timer, clock=self.clock).winner()[:2]


@pytest.mark.parametrize("peak", [1, 4, 32, 128, 1024])
def test_it_finds_the_chunk_where_the_caches_suffice(peak: int) -> None:
    def seconds(strategy: str, chunk: int) -> float:
        slower = max(chunk / peak, peak / chunk) ** 0.5
        return 1e-6 * chunk * slower * (1 + VMAPS.index(strategy))

    device = Device(seconds)
    strategy, chunk = device.winner(shape_of(1024, 1024))
    assert strategy == "vjp/vmap"
    assert chunk == peak
    assert len(set(device.asked)) < 20, "it climbs, it does not sweep"


def test_a_strategy_that_is_far_behind_at_first_but_not_hopeless_may_win() -> None:
    """What costs is calling its operators: at 64 products it is 3 times slower, at 1,024 5 times faster."""

    def seconds(strategy: str, chunk: int) -> float:
        return 192e-6 if strategy == "jvp/vmap" else 1e-6 * chunk

    assert Device(seconds).winner(shape_of(1024, 1024)) == ("jvp/vmap", 1024)


def test_rows_and_columns_are_compared_by_what_all_of_j_takes() -> None:
    same = Device(lambda strategy, chunk: 1e-6 * chunk)
    assert same.winner(shape_of(4000, 1000))[0] != "vjp/vmap"
    assert same.winner(shape_of(1000, 4000))[0] == "vjp/vmap"


def test_a_graph_counts_once_a_point_and_many_points_share_calls() -> None:
    """Each call takes a millisecond, whatever it makes: all points at once are best."""
    device = Device(lambda strategy, chunk: 1e-3, setup=1e-3)
    assert device.winner(shape_of(10, 1000, points=100), ["vjp/vmap"]) == ("vjp/vmap", 1000)


def test_all_of_j_at_once_is_tried_though_what_is_between_is_slower() -> None:
    """It alone is not copied. Where a second look would take long, it is not tried."""

    def seconds(strategy: str, chunk: int) -> float:
        return 1e-6 * chunk * (0.5 if chunk == 100_000 else 1 if chunk <= 64 else 2)

    assert Device(seconds).winner(shape_of(100, 1000, points=1000), ["vjp/vmap"]) == ("vjp/vmap", 100_000)
    slow = Device(lambda strategy, chunk: 100 * seconds(strategy, chunk))
    assert slow.winner(shape_of(100, 1000, points=1000), ["vjp/vmap"])[1] < 100_000
    assert ("vjp/vmap", 100_000) not in slow.asked


@pytest.mark.parametrize(("chunk", "copied"), [(12, True), (24, False)])
def test_only_a_chunk_that_is_all_of_j_is_timed_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, chunk: int, copied: bool
) -> None:
    copies: list[object] = []
    monkeypatch.setattr("jacjobs.autodiff.block.Destination._put", lambda *made: copies.append(made))
    problem = jacjobs.Problem(torch.sin, (torch.randn(4, 6),), in_dims=0)
    racing.race(problem, ["vjp/vmap"], lambda strategy, size: size == chunk)
    assert bool(copies) == copied


def test_where_chunks_cost_much_those_that_are_near_go_first() -> None:
    """As those that are compiled: of 4,096 products at once, each try is one less of those that matter."""

    def seconds(strategy: str, chunk: int) -> float:
        return 1e-6 * chunk * (1 + abs(math.log2(chunk / 32)))

    racing_all, racing_near = Device(seconds), Device(seconds)
    shape = shape_of(4096, 4096)
    for device, near in ((racing_all, None), (racing_near, 64)):
        Race(shape, ["vjp/vmap"], device.timer, clock=device.clock, start=128, near=near).winner()
    all_first, near_first = (
        [chunk for _, chunk in dict.fromkeys(device.asked)] for device in (racing_all, racing_near)
    )
    assert all_first[:2] == [128, 4096]
    assert near_first[:2] == [128, 32]
    assert 4096 not in near_first[:4]


@pytest.mark.parametrize(("warm_up", "winner"), [(True, "vjp/vmap"), (False, "jvp/vmap")])
def test_what_the_first_call_of_a_process_pays_for_counts_against_nobody(
    monkeypatch: pytest.MonkeyPatch, warm_up: bool, winner: str
) -> None:
    """Threads and libraries begin with it (seen: 2.9 s for 0.5). Without warming up, the second best wins."""
    calls: list[str] = []
    seconds = {"vjp/vmap": 0.06, "jvp/vmap": 0.12, "double-vjp/vmap": 0.18}

    def time_chunks(_: object, strategy: str, *__: object, **___: object) -> tuple[float, float]:
        calls.append(strategy)
        return 0.0, seconds[strategy] * (10 if len(calls) == 1 else 1)

    def cold(*arguments: Any, **options: Any) -> Pass | None:
        return timing.timed(*arguments, **{**options, "warm": False})

    monkeypatch.setattr(timing, "time_chunks", time_chunks)
    monkeypatch.setattr(Race, "_run_again", lambda *_: None)
    if not warm_up:
        monkeypatch.setattr(racing, "timed", cold)
    problem = jacjobs.Problem(torch.sin, (torch.randn(256),))
    assert racing.race(problem, list(seconds), lambda strategy, chunk: True).strategy == winner


@pytest.mark.parametrize(("again", "winner"), [(True, "vjp/vmap"), (False, "jvp/vmap")])
def test_what_came_first_and_seemed_far_behind_is_timed_again(
    monkeypatch: pytest.MonkeyPatch, again: bool, winner: str
) -> None:
    """The heap grew (seen: 1.9 s for 0.4). Otherwise it would never be looked at again."""
    device = Device(lambda strategy, chunk: 1e-4 * chunk * (1 + 0.2 * VMAPS.index(strategy)))

    def timer(strategy: str, chunk: int, warm: bool) -> Pass | None:
        first = not device.asked
        made = device.timer(strategy, chunk, warm)
        return made and made._replace(chunk_seconds=(5 if first else 1) * made.chunk_seconds)

    if not again:
        monkeypatch.setattr(Race, "_run_again", lambda *_: None)
    assert Race(shape_of(1024, 1024), VMAPS, timer, clock=device.clock).winner().strategy == winner


def test_memory_that_was_never_touched_counts_against_no_chunk() -> None:
    """Seen: 15 times slower in the first pass that needs it. All of J at once is fastest all the same."""
    device = Device(lambda strategy, chunk: 1e-4 * chunk * (0.5 if chunk == 320 else 1))
    most = 0

    def timer(strategy: str, chunk: int, warm: bool) -> Pass | None:
        nonlocal most
        made = device.timer(strategy, chunk, warm)
        cold, most = chunk > most and not warm, max(most, chunk)
        return made and made._replace(chunk_seconds=(15 if cold else 1) * made.chunk_seconds)

    race = Race(shape_of(10, 85_002, points=32), ["vjp/vmap"], timer, clock=device.clock)
    assert race.winner()[:2] == ("vjp/vmap", 320)


def test_all_of_j_at_once_is_in_the_finals_before_the_second_best() -> None:
    """What it takes is known least, and there may be no time for all."""
    device = Device(lambda strategy, chunk: 2e-4 * chunk * (2 if chunk == 1024 else 1))

    def make_all(strategy: str, chunk: int) -> bool:
        device.now += 0.09 if chunk == 1024 else 0.3
        return True

    race = Race(shape_of(1024, 1024), ["vjp/vmap"], device.timer, make_all, device.clock)
    assert race.winner()[:2] == ("vjp/vmap", 1024)


@pytest.mark.parametrize(
    ("device", "seconds", "start"), [("cpu", 1e-3, 64), ("cuda", 1e-3, 1024), ("cuda", 1.0, 64)]
)
def test_on_a_gpu_no_first_call_counts_and_chunks_are_larger(
    monkeypatch: pytest.MonkeyPatch, device: str, seconds: float, start: int
) -> None:
    """Each kernel is loaded when it is first asked for (seen: it cost the fastest strategy the race). Small
    chunks leave a GPU idle; where they do not, large ones are not begun with.
    """
    seen: list[bool] = []
    chunks: list[int] = []

    def timed(_: object, strategy: str, chunk: int, *, warm: bool, **__: object) -> Pass:
        seen.append(warm)
        chunks.append(chunk)
        return Pass(0.0, seconds)

    monkeypatch.setattr(racing, "timed", timed)
    monkeypatch.setattr(racing, "device_of", lambda problem: torch.device(device))
    problem = jacjobs.Problem(torch.sin, (torch.randn(4096),))
    racing.race(problem, ["vjp/vmap", "jvp/vmap"], lambda strategy, chunk: True)
    assert all(seen) == (device == "cuda")
    assert chunks[device == "cuda"] == start


def test_where_memory_runs_out_nothing_larger_is_tried() -> None:
    device = Device(lambda strategy, chunk: 1e-6, full=30)
    assert device.winner(shape_of(1024, 1024), ["vjp/vmap"]) == ("vjp/vmap", 16)
    asked = [chunk for _, chunk in device.asked]
    assert sum(chunk >= 30 for chunk in asked) <= 2
    assert Device(lambda strategy, chunk: 1.0, full=1).winner(shape_of(8, 8)) == ("vjp/vmap", 1)


def test_what_has_no_memory_for_all_of_j_does_not_win() -> None:
    device = Device(lambda strategy, chunk: 6.5e-4 * chunk * (1 + 0.02 * abs(math.log2(chunk / 512))))
    asked: list[int] = []

    def make_all(_: str, chunk: int) -> bool:
        asked.append(chunk)
        return chunk < 256

    shape = shape_of(1024, 1024)
    chunk = Race(shape, ["vjp/vmap"], device.timer, make_all, device.clock).winner().chunk
    assert asked
    assert chunk < 256


def test_nor_does_what_had_memory_only_once() -> None:
    def once(strategy: str, chunk: int, warm: bool) -> Pass | None:
        return None if (strategy, chunk) in device.asked else device.timer(strategy, chunk, warm)

    device = Device(lambda strategy, chunk: 1e-2 * chunk * (1 + 0.02 * abs(math.log2(chunk / 64))))
    assert Race(shape_of(1024, 1024), ["vjp/vmap"], once, clock=device.clock).winner().chunk < 64


def test_any_chunk_may_be_the_first() -> None:
    for start in (1, 3, 63, 1000):
        device = Device(lambda strategy, chunk: 1e-6, full=2)
        race = Race(shape_of(70, 70), ["vjp/vmap"], device.timer, clock=device.clock, start=start)
        assert race.winner()[:2] == ("vjp/vmap", 1)
        assert device.asked[0][1] <= start


def test_the_time_limit_is_kept_and_a_long_j_may_take_a_tenth() -> None:
    slow = Device(lambda strategy, chunk: 1e-3 * chunk)
    slow.winner(shape_of(1024, 1024))
    assert slow.now < LEAST_SECONDS + 4 * 0.256
    slower = Device(lambda strategy, chunk: 1e-1 * chunk)
    slower.winner(shape_of(1024, 1024))
    assert slower.now < 0.1 * 102.4 + 3 * 2 * 6.4 + 2 * 25.6, "each strategy once, and the last to begin"


def test_where_all_of_j_takes_no_time_it_decides() -> None:
    """What is fastest chunk by chunk takes longest to put together; but the best of all has no memory."""
    device = Device(lambda strategy, chunk: 1e-7 * chunk * (1 + abs(math.log2(chunk / 64))))
    made: list[tuple[str, int]] = []

    def make_all(strategy: str, chunk: int) -> bool:
        made.append((strategy, chunk))
        device.now += {64: 0.05, 128: 0.01, 32: 0.001}.get(chunk, 0.03)
        return chunk != 32

    shape = shape_of(1024, 1024)
    race = Race(shape, ["vjp/vmap"], device.timer, make_all, device.clock)
    assert race.winner() == ("vjp/vmap", 128, pytest.approx(0.01))
    assert {*made} >= {("vjp/vmap", 64), ("vjp/vmap", 1024)}, "all of J at once is among them, too"
    cold = {64, 128, 1024}

    def cold_at_first(strategy: str, chunk: int) -> bool:
        device.now += 0.5 if chunk in cold else 0.0
        cold.discard(chunk)
        return make_all(strategy, chunk)

    again = Race(shape, ["vjp/vmap"], device.timer, cold_at_first, device.clock)
    assert again.winner()[:2] == ("vjp/vmap", 128), "each counts by its best"
    made.clear()
    slow = Device(lambda strategy, chunk: 1e-3 * chunk)
    Race(shape, VMAPS, slow.timer, make_all, slow.clock).winner()
    assert not made, "a J that takes a second is not made"


def test_where_all_of_j_takes_some_time_the_best_two_make_it_once() -> None:
    """Chunks of 64 seem best; what putting them together takes is seen when that is done."""
    device = Device(lambda strategy, chunk: 5e-4 * chunk * (1 + 0.02 * abs(math.log2(chunk / 64))))
    made: list[tuple[str, int]] = []

    def make_all(strategy: str, chunk: int) -> bool:
        made.append((strategy, chunk))
        device.now += 0.7 if chunk == 64 else 0.55
        return True

    race = Race(shape_of(1024, 1024), ["vjp/vmap"], device.timer, make_all, device.clock)
    _, chunk, seconds = race.winner()
    assert len(made) == 2
    assert ("vjp/vmap", 64) in made
    assert chunk != 64
    assert seconds == pytest.approx(0.55)
    assert device.now < LEAST_SECONDS + 2 * 0.55


@pytest.mark.parametrize(("rows", "points"), [(1, 1), (7, 1), (1100, 1), (10, 64), (5000, 3), (8, 3)])
def test_chunks_cover_what_there_is_evenly(rows: int, points: int) -> None:
    chunks = chunks_of("vjp/vmap", shape_of(rows, 3, points))
    assert chunks[0] == 1
    assert chunks == sorted(set(chunks))
    assert rows in chunks
    assert (rows * points in chunks) == (rows <= racing.WHOLE_POINTS or points == 1)
    for chunk in chunks:
        if chunk > rows:
            assert chunk % rows == 0
        else:
            count = -(-rows // chunk)
            assert count * chunk - rows < count, "the last chunk lacks less than one product a chunk"
    assert chunks_of("vjp/loop", shape_of(rows, 3, points)) == [1]


def test_what_is_slow_here_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real function whose forward mode is made slow: reverse mode is taken, though rows are more."""

    class Slow(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None: ...

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * 2

        @staticmethod
        def jvp(ctx: object, tangent: Tensor) -> Tensor:
            for _ in range(300):
                tangent = tangent + 0
            return tangent * 2

    chosen: list[racing.Choice] = []
    race = racing.race

    def seen(*arguments: Any, **options: Any) -> racing.Choice:
        chosen.append(race(*arguments, **options))
        return chosen[-1]

    monkeypatch.setattr("jacjobs.autodiff.jacobian.race", seen)
    W = torch.randn(100, 60)
    J = jacjobs.jacobian(lambda x: W @ Slow.apply(x))(torch.randn(60))
    torch.testing.assert_close(J, 2 * W)
    assert chosen
    assert not any(choice.strategy.startswith("jvp/") for choice in chosen)


@pytest.mark.parametrize("quick", [True, False])
def test_where_calls_decide_all_that_is_batched_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """Copies have fewer calls, and many rows by one backward pass fewer than a few tangents."""
    seen: set[str] = set()
    race = racing.race

    def watched(problem: Any, names: Any, *arguments: Any, **options: Any) -> racing.Choice:
        seen.update(names)
        return race(problem, names, *arguments, **options)

    monkeypatch.setattr("jacjobs.autodiff.jacobian.race", watched)
    monkeypatch.setattr("jacjobs.autodiff.jacobian.QUICK_SECONDS", math.inf if quick else 0)
    W = torch.randn(40, 3)
    torch.testing.assert_close(jacjobs.jacobian(lambda x: W @ x)(torch.randn(3)), W)
    batched = {name for name in STRATEGIES if not name.endswith("/loop")}
    assert seen == (batched if quick else {"jvp/vmap", "double-vjp/vmap"})


def test_what_has_many_more_products_is_not_looked_at_however_quick() -> None:
    """Trying 300,000 columns took eight seconds, where all of J, two rows, takes two milliseconds."""
    found = _quick_too("vjp/vmap", shape_of(2, 300_000))
    assert found == ["vjp/vmap", "vjp/repeat"]
