"""What is kept of when things happened says the same as a record of everything, and stays small."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacjobs.run import timeline
from jacjobs.run.history import History
from jacjobs.run.timeline import CELLS, CELLS_OF_A_LANE, FINEST_SECONDS, Chronicle
from jacjobs.store.attempt import BUCKETS, Attempt, Timeline, Work, digits, shares
from tests.faults.scenarios import Scenario, grid
from tests.faults.simulator import Simulation, play

WORKERS = ("a", "b", "c")


@dataclass(frozen=True)
class Happening:
    """After a pause: a worker gives a block that took so long, or (none) an assembler takes entries in."""

    pause: float
    worker: str | None
    seconds: float
    entries: int


@dataclass
class Everything:
    """A chronicle, and beside it the naive record: all that it was told."""

    now: float = 0.0
    computed: list[tuple[float, float, int, str]] = field(default_factory=list)
    taken: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chronicle = Chronicle(lambda: self.now)
        for worker in WORKERS:
            self.chronicle.joined(worker, 0.0)

    def tell(self, what: Happening) -> None:
        self.now += what.pause
        if what.worker is None:
            self.taken.append((self.now, what.entries))
            self.chronicle.taken(what.entries)
        else:
            start = max(0.0, self.now - what.seconds)
            self.computed.append((start, self.now, abs(what.entries), what.worker))
            self.chronicle.computed(what.worker, what.seconds, abs(what.entries))

    def busy_in(self, start: float, stop: float, worker: str | None = None) -> float:
        return sum(
            max(0.0, min(stop, b) - max(start, a)) for a, b, _, who in self.computed if worker in (None, who)
        )

    def computed_until(self, moment: float) -> float:
        return sum(
            entries if b <= moment else entries * (moment - a) / (b - a)
            for a, b, entries, _ in self.computed
            if a < moment
        )


SECONDS = st.one_of(
    st.just(0.0), st.floats(0, 0.1), st.floats(0, 10), st.floats(0, 1e4), st.sampled_from([2.0**-5, 1.0, 7.5])
)
HAPPENINGS = st.builds(
    Happening,
    pause=SECONDS,
    worker=st.sampled_from([None, *WORKERS]),
    seconds=SECONDS,
    entries=st.integers(-1000, 10**6),
)


@settings(deadline=None)
@given(st.lists(HAPPENINGS, max_size=60))
def test_it_says_what_a_record_of_everything_says(happenings: list[Happening]) -> None:
    all_of_it = Everything()
    for happening in happenings:
        all_of_it.tell(happening)
    record = all_of_it.chronicle.record()
    width = record.seconds
    assert (width / FINEST_SECONDS).is_integer()
    assert len(record.computed) == len(record.taken) == len(record.busy) <= BUCKETS
    # conserved, to the last entry, however often buckets were merged
    assert sum(record.computed) == sum(entries for _, _, entries, _ in all_of_it.computed)
    assert sum(record.taken) == sum(entries for _, entries in all_of_it.taken)
    for bucket, (busy, taken, until) in enumerate(
        zip(record.busy, record.taken, accumulate(record.computed), strict=True)
    ):
        start, stop = bucket * width, (bucket + 1) * width
        assert busy == pytest.approx(all_of_it.busy_in(start, stop), abs=2e-3)
        assert taken == sum(entries for at, entries in all_of_it.taken if start <= at < stop)
        assert abs(until - all_of_it.computed_until(stop)) <= len(all_of_it.computed) + 1e-3
    for worker in WORKERS:
        lane = [
            all_of_it.busy_in(i * w, (i + 1) * w, worker) for i, w in enumerate([record.lane_seconds] * 300)
        ]
        said = all_of_it.chronicle.lane(worker)
        assert len(said) <= BUCKETS
        assert_near(said.ljust(300, "0"), digits(lane, record.lane_seconds))


def assert_near(said: str, expected: str) -> None:
    """To the digit, or the next one where rounding decides."""
    assert max((abs(int(a) - int(b)) for a, b in zip(said, expected, strict=True)), default=0) <= 1
    assert sum(a != b for a, b in zip(said, expected, strict=True)) <= 2


def test_time_goes_on_without_events() -> None:
    """Nothing is stored for it, and what comes after a week is where it belongs."""
    all_of_it = Everything()
    all_of_it.tell(Happening(1.0, "a", 1.0, 10))
    before = all_of_it.chronicle.record()
    all_of_it.now = 7 * 86400.0
    assert all_of_it.chronicle.record() == before
    all_of_it.tell(Happening(0.0, "a", 3600.0, 10))
    record = all_of_it.chronicle.record()
    assert record.computed[0] == 10
    assert sum(record.computed[-3:]) == 10
    assert sum(record.busy) == pytest.approx(3601.0)
    assert BUCKETS // 2 < len(record.busy) <= BUCKETS
    assert all_of_it.chronicle.lane("a").strip("0") != ""


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, -float("inf"), 1e300])
def test_a_worker_or_a_clock_that_has_gone_mad_breaks_nothing(seconds: float) -> None:
    now = 5.0
    chronicle = Chronicle(lambda: now)
    chronicle.joined("a", now)
    chronicle.computed("a", seconds, 7)
    chronicle.computed("nobody", seconds, 7)
    now = seconds
    chronicle.computed("a", 1.0, 7)
    chronicle.taken(7)
    now = 6.0
    chronicle.taken(7)
    record = chronicle.record()
    assert sum(record.computed) == 21
    assert sum(record.taken) == 14
    assert Timeline.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    ("workers", "seconds", "blocks"), [(1, 0.01, 20_000), (200, 30.0, 40_000), (2000, 3600.0, 60_000)]
)
def test_its_size_is_bounded_however_long_it_takes_and_whoever_works(
    workers: int, seconds: float, blocks: int
) -> None:
    now, chance = 0.0, random.Random(0)
    history = History(lambda: now)
    for number in range(workers):
        history.joined(f"w{number}", "here", "")
    for number in range(blocks):
        now += seconds / workers
        history.computed(f"w{number % workers}", seconds * chance.random(), 5, 1 << 20)
        history.taken(5)
    work, record = history.work, history.timeline
    assert len(record.busy) <= BUCKETS
    assert len(json.dumps(record.model_dump(mode="json"), indent=2)) < 20_000
    assert sum(len(one.busy) for one in work) <= max(CELLS, CELLS_OF_A_LANE * workers)
    assert sum(record.computed) == sum(record.taken) == 5 * blocks
    assert min(len(one.busy) for one in work) >= 4, "and a lane still tells something"
    assert sum(record.busy) == pytest.approx(sum(one.seconds for one in work), rel=0.02)
    assert {one.peak_bytes for one in work} == {1 << 20}


def test_workers_that_come_and_go_have_lanes_from_when_they_joined() -> None:
    now = 0.0
    history = History(lambda: now)
    for number in range(4000):
        history.joined(f"w{number}", "here", "")
        now += 10.0
        history.computed(f"w{number}", 10.0, 1)
        history.left(f"w{number}")
    record, work = history.timeline, history.work
    assert sum(len(one.busy) for one in work) <= max(CELLS, CELLS_OF_A_LANE * len(work))
    for one in work:
        end = (int(one.joined / record.lane_seconds) + len(one.busy)) * record.lane_seconds
        assert one.left is not None
        assert one.left - 1e-6 <= end <= one.left + record.lane_seconds
    assert sum(record.busy) == pytest.approx(40_000.0)


def test_the_work_of_an_event_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: merges touch all buckets, and are few."""
    touched = 0
    widen = timeline._Lane.widen

    def counted(lane: timeline._Lane) -> None:
        nonlocal touched
        touched += 1 + len(lane.busy)
        widen(lane)

    monkeypatch.setattr(timeline._Lane, "widen", counted)
    costs = []
    for blocks in (20_000, 200_000):
        now, touched = 0.0, 0
        chronicle = Chronicle(lambda: now)  # noqa: B023
        for number in range(100):
            chronicle.joined(str(number), 0.0)
        for number in range(blocks):
            now += 0.01
            chronicle.computed(str(number % 100), 1.0, 1)
        costs.append(touched / blocks)
    assert costs[1] < costs[0] < 10


@pytest.mark.parametrize("seed", range(40))
def test_of_a_run_with_faults_it_says_what_the_ledger_says(seed: int) -> None:
    """Also of an assembler that was lost with what it had taken in."""
    ledger = play(seed).ledger
    record = ledger.history.timeline
    assert sum(record.taken) == ledger.entries_done
    assert sum(record.computed) >= ledger.entries_done
    assert Timeline.model_validate_json(record.model_dump_json()) == record
    for work in ledger.history.work:
        assert Work.model_validate_json(work.model_dump_json()) == work


def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging that loses the odd bucket at the end: as naive as it would be written."""
    monkeypatch.setattr(Chronicle, "_widen", _careless)
    all_of_it = Everything()
    for _ in range(BUCKETS + 1):
        all_of_it.tell(Happening(FINEST_SECONDS, "a", FINEST_SECONDS, 3))
    record = all_of_it.chronicle.record()
    assert sum(record.computed) != 3 * (BUCKETS + 1)


def _careless(chronicle: Chronicle, moment: float) -> None:
    while moment / chronicle._width >= BUCKETS:
        chronicle._width *= 2
        for name in ("_computed", "_taken", "_busy"):
            values = getattr(chronicle, name)
            setattr(chronicle, name, [a + b for a, b in zip(values[1::2], values[2::2], strict=False)])
    chronicle._lane_width = max(chronicle._lane_width, chronicle._width)


def test_all_of_a_simulated_run_is_busy() -> None:
    """64 workers that have always something to do are nearly always at work."""
    simulation = Simulation(Scenario(tiling=grid(2000, 4), workers=64, block_seconds=5.0), 0)
    simulation.play()
    record = simulation.ledger.history.timeline
    middle = record.busy[len(record.busy) // 4 : len(record.busy) // 2]
    assert all(seconds > 0.85 * 64 * record.seconds for seconds in middle)
    for work in simulation.ledger.history.work:
        inner = list(shares(work.busy))[2:-4]
        assert sum(inner) > 0.85 * len(inner)


def test_a_record_of_an_earlier_version_has_none() -> None:
    content = {
        **{"number": 1, "started": "", "host": "here", "pid": 1, "state": "complete", "seconds": 2.0},
        **{"blocks_done": 3, "blocks_total": 3, "workers": [{"name": "w", "where": "here", "joined": 0.1}]},
    }
    attempt = Attempt.model_validate(content)
    assert attempt.timeline is None
    assert (attempt.workers[0].busy, attempt.workers[0].peak_bytes) == ("", 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"computed": [-1]},
        {"computed": [10**400]},
        {"taken": [10**400]},
        {"busy": [float("inf")]},
        {"busy": [0.0] * (BUCKETS + 1)},
        {"lane_seconds": 0},
    ],
)
def test_numbers_that_no_run_writes_are_refused(wrong: dict[str, object]) -> None:
    fine = {"seconds": 1.0, "computed": [1], "taken": [1], "busy": [0.5], "lane_seconds": 1.0}
    Timeline.model_validate(fine)
    with pytest.raises(ValueError, match="Timeline"):
        Timeline.model_validate({**fine, **wrong})


@pytest.mark.parametrize(
    "wrong", [{"busy": "12x"}, {"busy": "٣"}, {"busy": "1\n"}, {"busy": "9" * 5000}, {"peak_bytes": -1}]
)
def test_lanes_that_no_run_writes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Work"):
        Work.model_validate({"name": "w", "where": "here", "joined": 0.1, **wrong})
