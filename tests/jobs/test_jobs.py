"""The jobs of jobs/, small, against references that are made without jacjobs; and the sizes they state."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from jacjobs import JacobianDataset
from jacjobs.api import submit_job
from jacjobs.cli.render import size
from jacjobs.planning.planner import Plan
from jobs.run_all import TOLERANCE, load
from tests.conftest import JOBS


def named(strategy: str, chunk: int) -> list[str]:
    """To try all strategies takes long where the function is slow."""
    return [f"compute.strategy={strategy}", f"compute.chunk={chunk}"]


NAMES = sorted(path.stem for path in JOBS.glob("*.yaml"))
SMALL = {
    "brusselator": ["params.grid=8"],
    "bundle": ["params.cameras=8", "params.points=40"],
    "digits": ["params.limit=60"],
    "digits-parameters": ["params.limit=100"],
    "hessian": ["params.width=6", "params.limit=200"],
    "kernel-residual": ["params.count=60", "params.centres=4"],
    "minilm": ["params.sentences=2", "params.tokens=6", *named("vjp/vmap", 64)],
    "nightly": ["params.limit=10"],
    "orbit": ["params.satellites=4", "params.steps=16", *named("jvp/vmap", 36)],
}
"""Settings that make each job small."""
CHEAPER = {"hessian": ["params.limit=10"]}
"""Of a job that takes long to build at the size of a cluster: what its shape does not depend on."""


@dataclass(frozen=True)
class Small:
    """A job that was run small: what it is, its plan, what it left."""

    module: ModuleType
    params: dict[str, Any]
    plan: Plan
    J: JacobianDataset
    reference: np.ndarray
    finding: Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """Runs a job when it is first asked for."""
    folder = tmp_path_factory.mktemp("jobs")
    made: dict[str, Small] = {}

    def run(name: str) -> Small:
        if name not in made:
            settings = ["cluster.address=inline", *SMALL[name]]
            with one_thread():
                ready = load(JOBS / f"{name}.yaml", settings, folder / name)
                handle = submit_job(ready.job)
                J = handle.result()
                want = ready.reference(list(range(J.points)), **ready.params)
                if isinstance(want, list):
                    want = np.stack([matrix.toarray() for matrix in want])
            (module,) = ready.job.modules
            made[name] = Small(module, ready.params, handle.plan, J, want, ready.finding)
        return made[name]

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_equals_its_reference_at_every_point(
    name: str, runs: Callable[[str], Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Column by column: those of one parameter may be thousands of times smaller than those of another."""
    small = runs(name)
    assert small.J.shape == (small.plan.shape.points, small.plan.shape.rows, small.plan.shape.columns)
    assert small.J.shape == small.reference.shape
    errors = np.abs(small.J.to_numpy() - small.reference).max(1)
    scales = np.abs(small.reference).max(1)
    largest = scales.max(1, keepdims=True)
    if small.J.dtype == np.float32:  # what almost cancels has the rounding of what it is made of
        scales = np.maximum(scales, 0.1 * largest)
    assert (errors[scales == 0] == 0).all()
    assert (errors <= TOLERANCE[small.J.dtype.name] * np.where(scales == 0, 1, scales)).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_is_a_sentence_or_two(name: str, runs: Callable[[str], Small]) -> None:
    small = runs(name)
    with one_thread():
        said = small.finding(small.J, **small.params)
    assert 40 < len(said) < 500
    assert said.endswith(".")
    assert "\n" not in said
    assert "nan" not in said


# -- what they find, where it can be known -------------------------------------------------------------------


def test_digits_moved_across_the_boundary_are_misread(runs: Callable[[str], Small]) -> None:
    small = runs("digits")
    distances, misled = small.module.boundaries(small.J, **small.params)
    assert (distances > 0).all()
    assert misled > 0.9
    images, network = small.module.load(60)
    there = network(images[:, None]).argmax(1).numpy()
    assert (there == small.module.labels(60)).mean() > 0.9


def test_the_tangent_kernel_reads_digits_that_it_has_not_seen(runs: Callable[[str], Small]) -> None:
    """50 seen, 50 new; by chance a tenth would be right."""
    small = runs("digits-parameters")
    kernel, network = small.module.accuracies(small.J, **small.params)
    assert kernel > 0.5
    assert network > 0.9


def test_the_digits_that_the_network_is_tried_on_did_not_train_it(runs: Callable[[str], Small]) -> None:
    digits = runs("digits").module
    images, network = digits.load(None)
    again = digits.train(images[::2], torch.from_numpy(digits.labels(None))[::2])
    for here, there in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(here, there)


def test_a_newton_step_is_quadratic(runs: Callable[[str], Small]) -> None:
    small = runs("brusselator")
    before, after, shrinks = small.module.newton(small.J, **small.params)
    assert after < before / 10
    assert 3.5 < shrinks < 4.5


def test_a_gauss_newton_step_leaves_the_noise(runs: Callable[[str], Small]) -> None:
    small = runs("bundle")
    before, after, _ = small.module.gauss_newton(small.J, **small.params)
    assert before > 2 * small.module.NOISE
    assert after < small.module.NOISE


def test_errors_of_height_grow_as_theory_says(runs: Callable[[str], Small]) -> None:
    small = runs("orbit")
    along, by_drag = small.module.drifts(small.J, small.params["satellites"])
    assert along == pytest.approx(6 * np.pi, rel=0.02)
    assert by_drag > 0


def test_a_satellite_keeps_its_energy_without_drag(runs: Callable[[str], Small]) -> None:
    """The oracle and the job share no line of the model; this holds it to physics."""
    orbit = runs("orbit").module
    build = orbit.problem(satellites=4, steps=64, every=64)
    initial, parameters, step = build.leaves
    parameters = parameters.clone()
    parameters[2] = 0
    last = build.fn(initial, parameters, step)[:, 0]

    def energy(state: torch.Tensor) -> torch.Tensor:
        radius = state[:, :3].norm(dim=1)
        oblate = (3 * (state[:, 2] / radius) ** 2 - 1) / 2 * parameters[1] / radius**2
        return state[:, 3:].square().sum(1) / 2 - parameters[0] / radius * (1 - oblate)

    torch.testing.assert_close(energy(last), energy(initial), rtol=1e-5, atol=0)
    assert not torch.allclose(last, initial, rtol=1e-3)


def test_a_hessian_is_symmetric(runs: Callable[[str], Small]) -> None:
    small = runs("hessian")
    values, asymmetry = small.module.spectrum(small.J)
    assert asymmetry < 1e-12
    np.testing.assert_allclose(values.sum(), small.J[0].trace(), rtol=1e-10)
    assert 1 <= small.module.outliers(values) <= 2 * small.module.CLASSES


def test_a_kernel_residual_has_fewer_directions_than_parameters(runs: Callable[[str], Small]) -> None:
    small = runs("kernel-residual")
    values = np.linalg.svd(small.J[0], compute_uv=False) ** 2
    count = small.module.determined(small.J)
    assert values[:count].sum() >= 0.99 * values.sum() > values[: count - 1].sum()


def test_sentences_are_embedded_as_the_library_does_it(runs: Callable[[str], Small]) -> None:
    minilm = runs("minilm").module
    from sentence_transformers import SentenceTransformer

    sentences = list(minilm.SENTENCES)
    model, ids, mask = minilm.load(len(sentences), None)
    inputs = model.embeddings.word_embeddings(ids)
    ours = torch.stack([minilm.embed(model, *point) for point in zip(inputs, mask, strict=True)])
    library = SentenceTransformer(str(minilm.get_model_path()), device="cpu")
    torch.testing.assert_close(ours, library.encode(sentences, convert_to_tensor=True), rtol=0, atol=1e-6)


def test_words_move_the_meaning_and_padding_does_not(runs: Callable[[str], Small]) -> None:
    small = runs("minilm")
    words = dict(small.module.influences(small.J, 0, **small.params))
    assert list(words) == [
        "the",
        "harbour",
        "is",
        "frozen",
    ]  # between what begins and ends a text of 6 tokens
    assert max(words, key=lambda word: words[word]) in ("harbour", "frozen")
    model, ids, mask = small.module.load(2, 12)
    inputs = model.embeddings.word_embeddings(ids)[0]
    other = torch.where(mask[0, :, None] == 0, 1.0, inputs)
    assert torch.equal(small.module.embed(model, inputs, mask[0]), small.module.embed(model, other, mask[0]))


# -- what they state -----------------------------------------------------------------------------------------


def test_the_nonzeros_that_are_stated(runs: Callable[[str], Small]) -> None:
    module = runs("brusselator").module
    assert f"{module.closed_form(module.start(512), 512).nnz:,} in all" in comment("brusselator")
    module = runs("bundle").module  # by hand, 100,000 observations take long
    assert module.closed_form(module.make(20, 400)).nnz == 24 * 400 * module.VIEWS
    assert f"{24 * 16_667 * module.VIEWS:,} in all" in comment("bundle")


def comment(name: str) -> str:
    """What stands at the top of a job file, in one line."""
    lines = (JOBS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def table() -> dict[str, list[str]]:
    """The rows of jobs/README.md by the job's name."""
    lines = (JOBS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| [")]
    return {re.findall(r"\((.*)\.yaml\)", row[0])[0]: row for row in rows}


def test_the_table_has_every_job() -> None:
    assert sorted(table()) == sorted(SMALL) == NAMES


def shape_with(name: str, settings: list[str]) -> str:
    shape = load(JOBS / f"{name}.yaml", settings).job.problem.shape
    return f"{shape}, {size(shape.total_bytes)}"


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_that_are_stated(name: str) -> None:
    _, _, here, there, *_ = table()[name]
    assert here == shape_with(name, [])
    assert f"J: {here}" in comment(name)
    settings, _, large = there.strip("`").partition("`: ")
    if large:
        assert there.replace("`", "") in comment(name)
        words = [word for word in shlex.split(settings) if word != "--set"]
        assert large == shape_with(name, [*words, *CHEAPER.get(name, [])])
