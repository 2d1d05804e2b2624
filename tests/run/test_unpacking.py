"""Tensors go where they are wanted, wherever they are found in what is pickled."""

from __future__ import annotations

from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from jacjobs import Problem
from jacjobs.run.unpacking import unpack


def captured(problem: Problem) -> dict[str, Any]:
    """What a problem's function closes over."""
    fn = problem.fn
    return {
        name: cell.cell_contents
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    }


def problem() -> Problem:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4))
    weights = {"part": torch.arange(30.0).reshape(5, 6)[1:, ::2], "half": torch.ones(3, dtype=torch.bfloat16)}

    def fn(image: Tensor) -> Tensor:
        return layers(image[None]).sum() * weights["part"].sum() * weights["half"].sum()

    return Problem(fn, (torch.randn(3, 5, 5),))


def test_all_tensors_are_on_the_device() -> None:
    """A device that holds nothing stands for a GPU."""
    moved = unpack(cloudpickle.dumps(problem()), "meta", from_host=True)
    found = captured(moved)
    layers = found["layers"]
    everything = [*layers.parameters(), *layers.buffers(), *found["weights"].values(), *moved.leaves]
    assert len(everything) == 2 + 2 + 3 + 2 + 1
    assert {tensor.device.type for tensor in everything} == {"meta"}


def test_they_are_what_they_were() -> None:
    before = problem()
    after = unpack(cloudpickle.dumps(before), "cpu", from_host=True)
    was, found = captured(before), captured(after)
    for name, tensor in was["weights"].items():
        assert found["weights"][name].dtype == tensor.dtype
        torch.testing.assert_close(found["weights"][name], tensor, rtol=0, atol=0)
    assert isinstance(found["layers"][0].weight, nn.Parameter)
    assert found["layers"][0].weight.stride() == was["layers"][0].weight.stride()
    torch.testing.assert_close(after.call_one(after.leaves), before.call_one(before.leaves), rtol=0, atol=0)


def test_of_a_problem_on_a_gpu_what_is_on_the_host_stays_there() -> None:
    """Lengths of sequences, say, which torch wants on the host."""
    moved = unpack(cloudpickle.dumps(problem()), "meta", from_host=False)
    assert {tensor.device.type for tensor in [*captured(moved)["weights"].values(), *moved.leaves]} == {"cpu"}
